"""Training in buckets of resolution, length and ratio, with resumption."""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter

import pytest
import torch
from PIL import Image

from kinema.cli.main import main
from kinema.events import Phase
from kinema.schema import BadRequest
from kinema.training.bucket_table import table
from kinema.training.options import TrainOptions
from kinema.training.run import train
from kinema.training.setup import prepare
from kinema.training.sources import open_source
from kinema.training.stream import Stream

CONFIG = {"32px": {"1": [1.0, 2], "5": [0.7, 2]}, "48px": {"5": [0.5, 2], "9": [[1.0, 0.5], 2]}}
"""Of the tiny preset: 16 to 48 pixels, at most 9 frames, 24 a second."""
FILMS = {"wide": (48, 64, 7), "high": (64, 40, 9), "long": (48, 48, 12), "short": (40, 40, 3), "small": (12, 12, 9)}
"""Height, width and frames of clips; "short" and "small" fit no bucket."""


def film(path, height, width, frames):
    """A gif of grey frames, each lighter than the one before, at 25 frames per second."""
    images = [Image.new("L", (width, height), 9 * t + height) for t in range(frames)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=40)
    path.with_suffix(".txt").write_text("a red ball")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder of clips; five of each kind, so that both parts of the split have some of them."""
    folder = tmp_path_factory.mktemp("clips")
    for name, size in FILMS.items():
        for i in range(5):
            film(folder / f"{name}-{i}.gif", *size)
    for i in range(3):
        Image.new("RGB", (40, 40), (i, 0, 0)).save(folder / f"still-{i}.png")
        (folder / f"still-{i}.txt").write_text("a blue star")
    return folder


@pytest.fixture
def options(clips, tmp_path, small):
    """``options(out, **changes)``: of a run in buckets."""
    file = tmp_path / "buckets.json"
    file.write_text(json.dumps(CONFIG))

    def make(out="run", **changes):
        given = {"model": "opensora/tiny", "data": str(clips), "buckets": str(file), "frameskip": 1, **changes}
        return small(out, batch=None, **given)

    return make


def opened(given):
    options = TrainOptions(**given)
    prepared = prepare(options)
    return open_source(options, prepared), prepared.system, prepared.settings


def test_batches_have_the_size_and_number_of_clips_of_their_bucket(options):
    source, system, settings = opened(options())
    stream = Stream(source.train, settings, settings.batch, 0)
    seen = Counter()
    for step in range(24):
        bucket, members = source.train.plan.at(step)
        batch, find = stream.at(step), system.lattice.resolutions.find
        assert batch.bucket == str(bucket)
        assert batch.video.shape == (2, 3, bucket.frames, *find(bucket.resolution).sizes[bucket.ratio])
        assert batch.mask.shape[2:] == batch.video.shape[2:]
        assert len(batch.captions) == len(members) == 2
        assert {c for c in batch.captions if c} <= {"a blue star" if bucket.frames == 1 else "a red ball"}
        seen[bucket[:2]] += 1
    assert set(seen) == {("32px", 1), ("32px", 5), ("48px", 5), ("48px", 9)}
    again = Stream(opened(options())[0].train, settings, settings.batch, 0)
    assert all(torch.equal(again.at(step).video, stream.at(step).video) for step in (11, 3))


def test_clips_in_no_bucket_and_empty_buckets_are_reported(options, tmp_path):
    source, *_ = opened(options())
    (dropped,) = [note for note in source.train.skipped if "every bucket" in note]
    assert "of 25 clips are too short or too small for every bucket: s" in dropped
    assert "-0.gif (3 frames of 40×40)" in dropped or "frames of 12×12)" in dropped
    (tmp_path / "buckets.json").write_text(json.dumps({**CONFIG, "256px": {"5": [1.0, 1], "9": [0.0, None]}}))
    source, *_ = opened(options())
    assert "no clip is in these buckets: 256px × 5" in source.train.skipped
    (tmp_path / "buckets.json").write_text(json.dumps({"256px": {"5": [1.0, 1]}}))
    with pytest.raises(BadRequest, match=r"none of 2\d clips fits a bucket: they are too short or too small, such as "):
        opened(options())


def test_resuming_after_kill_9_gives_the_losses_of_the_uninterrupted_run(runs, options, tmp_path):
    expected = runs[0](options("whole", accumulate=2))[1]
    code, before = runs[1](options("killed", accumulate=2), tmp_path / "losses", die_at=5)
    assert code == -signal.SIGKILL
    _, heard = runs[0](options("killed", accumulate=2))
    assert any("resuming from step 4" in note for note in heard.notes)
    assert {**before, **heard.losses} == expected.losses
    assert {step: before[step] for step in (1, 2, 3, 4)} == {step: expected.losses[step] for step in (1, 2, 3, 4)}
    steps = [event for event in expected if type(event).__name__ == "TrainStep"]
    assert len({event.bucket for event in steps}) >= 3
    row = json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[-1])
    assert row["bucket"] == steps[-1].bucket


def test_a_run_is_resumed_only_with_its_buckets(runs, options, tmp_path):
    plain = options(steps=1, validate_every=0)
    runs[0](plain)
    (tmp_path / "buckets.json").write_text(json.dumps({"32px": {"5": [0.7, 2]}}))
    with pytest.raises(BadRequest, match=r"has buckets 48px 9: \(1, 0.5\) × 2, 5: 0.5 × 2; .*, not 32px 5: 0.7 × 2"):
        runs[0](plain)
    without = {name: value for name, value in plain.items() if name != "buckets"}
    with pytest.raises(BadRequest, match="not None; repeat the original options"):
        runs[0](without)
    runs[0]({**without, "batch": 1, "out": str(tmp_path / "other")})
    with pytest.raises(BadRequest, match="has buckets None, not 32px 5"):
        runs[0]({**plain, "out": str(tmp_path / "other")})


def test_playroom_is_rendered_at_the_size_of_each_bucket(runs, options):
    given = options(data="playroom", frameskip=None, steps=3)
    source, system, settings = opened(given)
    for step in range(6):
        bucket, members = source.train.plan.at(step)
        batch = Stream(source.train, settings, settings.batch, 0).at(step)
        size = system.lattice.resolutions.find(bucket.resolution).sizes[bucket.ratio]
        assert batch.video.shape == (len(members), 3, bucket.frames, *size)
    assert source.held_out.clip(0).caption not in {source.train.clip(i).caption for i in range(6)}
    _, heard = runs[0](given)
    assert len(heard.losses) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"accumulate": 3},
            "accumulate is 3; expected a divisor of the batch of every bucket, and that of 48px × 9 is 2",
        ),
        ({"batch": 4}, "batch does not apply to buckets, which have batches of their own; leave out batch"),
        ({"model": "svd/tiny"}, "svd/tiny is trained at one size, so buckets do not apply; leave out buckets"),
        ({"model": "zoetrope/tiny"}, "zoetrope/tiny is trained at one size"),
        ({"frames": 5}, "48px × 9 is longer than the 5 frames of opensora/tiny"),
        ({"buckets": "missing.json"}, "missing.json cannot be read: No such file"),
    ],
)
def test_options_that_buckets_exclude_are_refused(options, changes, message):
    with pytest.raises(BadRequest, match=message):
        opened({**options(), **changes})


def test_precomputed_latents_are_refused(options, tmp_path, monkeypatch):
    monkeypatch.setattr("kinema.data.shards.is_latents", lambda *_, **__: True)
    with pytest.raises(BadRequest, match="buckets do not apply to precomputed latents"):
        opened(options())


def test_an_unreadable_clip_is_replaced_by_others_of_its_batch(options, clips, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(clips, own)
    source, *_ = opened(options(data=str(own)))
    step = next(i for i in range(20) if len(set(source.train.plan.at(i)[1])) == 2)
    first, _ = source.train.plan.at(step)[1]
    expected = source.train.batch(step)[1][1].video
    fresh, *_ = opened(options(data=str(own)))
    damaged = fresh.train.draw.__self__.folder.entries[first].path
    damaged.write_bytes(b"damaged")
    _, found = fresh.train.batch(step)
    assert torch.equal(found[0].video, expected)
    assert torch.equal(found[1].video, expected)
    assert any(f"skipped {damaged.name}" in note for note in fresh.train.skipped)


def test_the_table_counts_clips_batches_and_dropped_ones(options, clips, tmp_path, capsys):
    found = table(TrainOptions(**options()))
    assert (found.clips, len(found.dropped)) == (28, 10)
    rows = {(row.resolution, row.frames): row for row in found.rows}
    assert [*rows] == [("48px", 9), ("48px", 5), ("32px", 5), ("32px", 1)]
    assert rows["32px", 1].clips == 3
    assert rows["32px", 1].batches == 2
    assert rows["48px", 9].expected == pytest.approx(5)  # half of the ten that are long enough
    assert rows["48px", 5].expected == pytest.approx(5)  # half of the others and of the five of seven frames
    assert rows["32px", 5].expected == pytest.approx(0.7 * 5)
    assert sum(rows["48px", 9].sizes.values()) == rows["48px", 9].clips
    file = str(tmp_path / "buckets.json")
    arguments = ["data", "buckets", str(clips), "--buckets", file, "--model", "opensora/tiny", "--frameskip", "1"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == 28
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "28 clips, 10 of them in no bucket" in out
    assert "32px      1      2       3     3.0        2        3  " in out


def test_a_bad_bucket_file_is_named_before_the_model_is_loaded(options, tmp_path, heard):
    (tmp_path / "buckets.json").write_text(json.dumps({"32px": {"4": [1.0, 2]}}))
    with pytest.raises(BadRequest, match=r"buckets.json: 32px × 4 does not fit opensora/tiny"):
        train(TrainOptions(**options()), heard)
    assert not [event for event in heard if isinstance(event, Phase)]
