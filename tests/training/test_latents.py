"""Precomputed latents: encoding, resuming, compatibility checks, and equality to encoding on the fly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from kinema.checkpoints import files
from kinema.data import playroom, shards
from kinema.data.clip import InOrder
from kinema.data.folder import Folder
from kinema.data.shards import Latents
from kinema.media.write import save_clip
from kinema.schema import BadRequest, Clip
from kinema.system import open_system
from kinema.training import latents
from kinema.training import run as loop
from kinema.training.latents import LatentsOptions
from kinema.training.stream import Stream

FRAMES = 20
"""Two windows of eight frames, and four unused frames."""


def film(path, seed, frames=FRAMES, caption=None):
    clip = playroom.sample(seed, frames=frames, height=24, width=16, fps=7.0)
    save_clip(Clip(torch.from_numpy(clip.video_CTHW)[None], 7.0), path, generated=False)
    path.with_suffix(".txt").write_text(caption or clip.caption)


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for i in range(4):
        film(folder / f"{i}.mp4", i)
    rows = {f"{i}.mp4": {"bytes": (folder / f"{i}.mp4").stat().st_size, "fps": 7, "motion": 0.1 * i} for i in range(4)}
    (folder / "motion.json").write_text(json.dumps({"clips": rows}))
    return folder


@pytest.fixture
def options(clips, tmp_path):
    def make(**changes):
        base = {"clips": str(clips), "model": "svd/tiny", "out": str(tmp_path / "latents"), "threads": 1, "shard": 4}
        return LatentsOptions(**{**base, **changes})

    return make


def test_every_window_of_every_clip_is_stored_with_its_conditioning(options, clips, tmp_path):
    done = latents.encode(options())
    assert (done.windows, done.clips, done.added) == (8, 4, 8)
    opened = Latents.open(tmp_path / "latents")
    starts = sorted((w.clip, w.start, round(w.motion, 3), w.fps) for _, _, w in opened.windows)
    assert starts == [(f"{i}.mp4", s, round(0.1 * i, 3), 7.0) for i in range(4) for s in (0, 8)]
    clip = opened.clip(5)
    assert clip.video.shape == (3, 1, 16, 16)
    assert clip.encoded["moments"].shape == (8, 8, 8, 8)
    assert clip.encoded["context"].shape == (32,)
    assert clip.caption
    order = [opened.clip(i).encoded["context"] for i in range(8)]
    assert len({tuple(c.tolist()) for c in order}) == 8


def test_the_loss_equals_that_of_encoding_on_the_fly(options, clips, tmp_path):
    """Tolerance 2e-3 of the loss for fp16, 1e-5 for fp32."""
    system = open_system("svd/tiny")
    folder = Folder.scan(clips, frames=8, height=16, width=16, fps=7.0)
    plain = {(e.name, start): clip for e in folder.entries for start, clip in folder.windows(e, 8)}
    for dtype, tolerance in (("fp16", 2e-3), ("fp32", 1e-5)):
        out = tmp_path / dtype
        latents.encode(options(out=str(out), dtype=dtype))
        stored = Latents.open(out)
        settings = system.family.training.settings(system.config)
        precomputed = Stream(stored, settings, 4).at(1)
        rows = [stored.windows[shards.shuffled(8, 0, 0)[i]][2] for i in range(4, 8)]

        class Same(InOrder):
            skipped = ()

            def clip(self, index, rows=rows):
                return plain[rows[index - 4].clip, rows[index - 4].start]

        whole = Stream(Same(), settings, 4).at(1)
        assert torch.equal(whole.video[:, :, :1], precomputed.video)
        assert torch.equal(whole.motion, precomputed.motion)
        losses = [
            loop.losses(system.model, system, batch, seed=3, precision="fp32").detach()
            for batch in (whole, precomputed)
        ]
        torch.testing.assert_close(*losses, rtol=tolerance, atol=tolerance)


KILL = """
import json, os, signal, sys
from kinema.data import shards
from kinema.training import latents
write = shards.write_shard
def deadly(folder, number, *rest):
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(folder, number, *rest)
shards.write_shard = deadly
latents.encode(latents.LatentsOptions(**json.loads(sys.argv[1])))
"""


def test_killed_work_resumes_after_the_last_complete_shard(options, tmp_path):
    latents.encode(options(out=str(tmp_path / "whole")))
    given = vars(options())
    done = subprocess.run([sys.executable, "-c", KILL, json.dumps(given)], timeout=200, check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert not shards.is_latents(tmp_path / "latents")
    assert len(list((tmp_path / "latents").glob("shard-*"))) == 1
    with pytest.raises(BadRequest, match="holds no encoded clips"):
        Latents.open(tmp_path / "latents")
    assert latents.encode(options()).added == 4
    for path in (tmp_path / "whole").glob("shard-*"):
        assert path.read_bytes() == (tmp_path / "latents" / path.name).read_bytes()
    assert latents.encode(options()).added == 0


def test_added_clips_are_encoded_and_changed_ones_refused(options, clips):
    latents.encode(options())
    film(clips / "new.mp4", 9)
    assert latents.encode(options()).added == 2
    film(clips / "1.mp4", 8)
    with pytest.raises(BadRequest, match=r"1\.mp4 changed since it was encoded"):
        latents.encode(options())


def test_latents_of_another_model_size_or_precision_are_refused(options, small, runs, clips, tmp_path):
    latents.encode(options())
    with pytest.raises(BadRequest, match="were encoded with dtype fp16, not fp32"):
        latents.encode(options(dtype="fp32"))
    with pytest.raises(BadRequest, match="were encoded with frames 8, not 4"):
        latents.encode(options(frames=4))
    run = small(model="svd/tiny", data=str(tmp_path / "latents"), steps=1, validate_every=0)
    with pytest.raises(BadRequest, match="were encoded with frames 8, not 4"):
        runs[0]({**run, "frames": 4})
    with pytest.raises(BadRequest, match="were encoded by another model"):
        runs[0]({**run, "seed": 1})  # with another seed an untrained codec differs
    with pytest.raises(BadRequest, match="encoded for svd, not for zoetrope"):
        runs[0]({**run, "model": "zoetrope/tiny"})
    for option in ({"crop": "random"}, {"flip": True}, {"frameskip": 2}):
        with pytest.raises(BadRequest, match=f"{next(iter(option))} does not apply to precomputed latents"):
            runs[0]({**run, **option})


def test_models_without_latents_and_missing_options_are_refused(options, tmp_path):
    with pytest.raises(BadRequest, match="zoetrope works on pixels"):
        latents.encode(options(model="zoetrope/tiny"))
    with pytest.raises(BadRequest, match="image encoder is trained with the U-Net"):
        latents.encode(options(model="svd/pocket"))
    with pytest.raises(BadRequest, match="out is missing"):
        options(out="")
    with pytest.raises(BadRequest, match="there is no folder"):
        latents.encode(options(clips=str(tmp_path / "none")))


def test_shards_that_do_not_match_the_index_are_refused(options, tmp_path):
    latents.encode(options())
    folder = tmp_path / "latents"
    (folder / "shard-00001.safetensors").unlink()
    with pytest.raises(BadRequest, match="do not match its index"):
        Latents.open(folder)
    files.write_tensors(folder / "shard-00001.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(BadRequest, match="is not a shard of encoded clips"):
        Latents.open(folder)


def test_training_on_latents_resumes_bit_exactly_after_kill_9(options, small, runs, tmp_path):
    latents.encode(options())
    options = {"model": "svd/tiny", "data": str(tmp_path / "latents"), "steps": 4, "validate_every": 2}
    _, heard = runs[0](small("whole", **options))
    code, before = runs[1](small("cut", **options), tmp_path / "losses", die_at=3)
    assert code == -9
    _, after = runs[0](small("cut", **options))
    assert {**before, **after.losses} == heard.losses


def test_held_out_windows_belong_to_other_clips(options, small, tmp_path):
    from kinema.training.options import TrainOptions
    from kinema.training.setup import prepare
    from kinema.training.sources import open_source

    latents.encode(options())
    train = TrainOptions(model="svd/tiny", data=str(tmp_path / "latents"))
    source = open_source(train, prepare(train))
    parts = [{w.clip for _, _, w in part.windows} for part in (source.train, source.held_out)]
    assert [len(p) for p in parts] == [3, 1]
    assert not parts[0] & parts[1]


@pytest.mark.parametrize("name", ["index.json", "holiday.mp4"])
def test_a_folder_with_other_files_is_refused_and_kept(options, tmp_path, name):
    out = tmp_path / "latents"
    out.mkdir()
    (out / name).write_text('{"kind": "mine"}')
    with pytest.raises(BadRequest, match=f"holds {name}, which does not belong to encoded clips"):
        latents.encode(options())
    assert {p.name: p.read_text() for p in out.iterdir()} == {name: '{"kind": "mine"}'}


def test_a_new_shard_gets_an_unused_name(options, clips, tmp_path):
    latents.encode(options())
    last = tmp_path / "latents" / "shard-00001.safetensors"
    (tmp_path / "latents" / "shard-00000.safetensors").unlink()
    before = last.read_bytes()
    assert latents.encode(options()).added == 4
    assert last.read_bytes() == before
    assert Latents.open(tmp_path / "latents").fingerprint


def test_links_out_of_the_folder_are_read_only_with_follow_links(options, tmp_path):
    latents.encode(options())
    folder = tmp_path / "latents"
    for name, message in (
        ("shard-00001.safetensors", "is outside the folder"),
        ("index.json", "holds no encoded clips"),
    ):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
        with pytest.raises(BadRequest, match=message):
            Latents.open(folder)
    assert len(Latents.open(folder, follow_links=True)) == 8


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["made"].pop("fps"),
        lambda data: data["made"].update(frames="8"),
        lambda data: data["windows"][0].update(captions=[3]),
        lambda data: data["windows"][0].update(start=True),
        lambda data: data["windows"].append(data["windows"][0]),
        lambda data: data.update(windows=3),
    ],
)
def test_a_shard_with_damaged_metadata_is_refused(options, tmp_path, change):
    latents.encode(options())
    path = tmp_path / "latents" / "shard-00001.safetensors"
    data = json.loads(files.metadata(path)["kinema-windows"])
    change(data)
    files.write_tensors(path, dict(files.read_tensors(path)), {"kinema-windows": json.dumps(data)})
    with pytest.raises(BadRequest, match="is damaged"):
        Latents.open(tmp_path / "latents")


def test_a_clip_listed_twice_is_encoded_once(options, clips, tmp_path):
    rows = [{"file_name": f"{i}.mp4", "text": word} for i in range(4) for word in ("one", "two")]
    (clips / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = latents.encode(options())
    assert (done.windows, done.clips) == (8, 4)
    assert {w.captions for _, _, w in Latents.open(tmp_path / "latents").windows} == {("one", "two")}
