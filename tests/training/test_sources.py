"""Sources of training clips, and runs on real clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kinema.data import playroom
from kinema.data.playroom.grammar import in_split
from kinema.schema import BadRequest
from kinema.training.options import TrainOptions
from kinema.training.setup import prepare
from kinema.training.sources import open_source


def clips(folder, names, frames=8):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for name in names:
        images = [Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)) for _ in range(frames)]
        images[0].save(folder / f"{name}.gif", save_all=True, append_images=images[1:], duration=120)
        (folder / f"{name}.txt").write_text(f"a red {name}")
    return str(folder)


def share(caption):
    """The only share that has this caption."""
    (found,) = (s for s in ("train", "tuning", "evaluation") if in_split(playroom.parse(caption), s))
    return found


def source(**changes):
    options = TrainOptions(model="zoetrope/tiny", **changes)
    prepared = prepare(options)
    return open_source(options, prepared), prepared.system, prepared.settings


def test_playroom_is_rendered_at_the_models_size_with_prompts_of_separate_shares():
    found, system, _ = source()
    own = system.family.sampling.defaults(system.config)
    video, caption, scene, *_ = found.train.clip(0)
    assert video.shape == (3, own.frames, own.height, own.width)
    trained = {found.train.clip(i)[1] for i in range(40)}
    held = {found.held_out.clip(i)[1] for i in range(40)}
    assert caption
    assert scene
    assert trained.isdisjoint(held)
    assert {share(caption) for caption in trained} == {"train"}
    assert {share(caption) for caption in (*held, *found.prompts)} == {"tuning"}


def test_the_split_of_the_shipped_weights_is_an_option():
    found, *_ = source(split="train-v1")
    assert {share(found.train.clip(i).caption) for i in range(40)} == {"train", "evaluation"}
    assert {share(found.held_out.clip(i).caption) for i in range(40)} == {"tuning"}


def test_the_identity_of_playroom_data_is_stable():
    """Checkpoints store it, and resumed runs compare it."""

    def identity(model, **changes):
        options = TrainOptions(model=model, **changes)
        return open_source(options, prepare(options)).identity

    mixed = {"source": "playroom", "grammar": "mixed", "split": "train"}
    assert identity("zoetrope/tiny") == identity("vdm/tiny") == mixed  # with and without playroom settings
    slow = {"source": "playroom", "grammar": "simple", "slow": 4.0, "without": ["fades"], "split": "train"}
    assert identity("svd/pocket") == slow
    assert identity("svd/pocket", camera="pans left", style="night") == {
        **slow,
        "camera": "pans left",
        "style": "night",
    }
    assert identity("vdm/tiny", split="train-v1") == {**mixed, "split": "train-v1"}
    assert identity("vdm/tiny", grammar="full") == {**mixed, "grammar": "full"}


def test_clips_are_resampled_to_the_models_rate_unless_frameskip_is_given(tmp_path):
    folder = clips(tmp_path / "clips", "ab")
    found, system, _ = source(data=folder)
    assert (found.train.fps, found.train.frameskip) == (system.family.sampling.defaults(system.config).fps, 1)
    found, _, settings = source(data=folder, frameskip=2)
    assert (found.train.fps, found.train.frameskip, settings.frameskip) == (None, 2, 2)
    found, *_ = source(data=folder, frameskip=1)
    assert (found.train.fps, found.train.frameskip) == (None, 1)


def test_sheet_prompts_are_held_out_captions(tmp_path):
    found, *_ = source(data=clips(tmp_path / "clips", "abc"))
    assert list(found.prompts) == [e.captions[0] for e in found.held_out.entries]


def test_one_unreadable_clip_does_not_refuse_a_folder(tmp_path):
    """With three clips, one is held out; training continues with the others whichever is damaged."""
    for bad in "abc":
        folder = Path(clips(tmp_path / bad, "abc"))
        (damaged,) = folder.glob(f"{bad}.*[!t]")
        damaged.write_bytes(b"no video")
        found, *_ = source(data=str(folder))
        assert found.train.clip(0)[0].ndim == 4
        assert found.held_out.clip(0)[0].ndim == 4


def test_a_missing_data_folder_is_refused(tmp_path):
    with pytest.raises(BadRequest, match="expected 'playroom' or a folder"):
        source(data=str(tmp_path / "none"))


def test_a_run_on_real_clips_trains_resumes_and_reports_skipped_clips(runs, small, tmp_path):
    folder = clips(tmp_path / "clips", "abcd")
    (tmp_path / "clips" / "broken.gif").write_bytes(b"GIF89a")
    whole, heard = runs[0](small("whole", data=folder, steps=4))
    assert any("skipped broken.gif" in note for note in heard.notes)
    runs[0](small(data=folder, steps=4, save_every=2))
    for path in (tmp_path / "run").glob("step-00000004*"):
        path.unlink()
    _, again = runs[0](small(data=folder, steps=4))
    assert again.losses == {step: heard.losses[step] for step in (3, 4)}
    with pytest.raises(BadRequest, match="has data folder, not playroom"):
        runs[0](small(steps=5))
    with pytest.raises(BadRequest, match="flip False, not True"):
        runs[0](small(data=folder, flip=True))


def test_a_folder_with_changed_clips_continues_and_is_reported(runs, small, tmp_path):
    folder = clips(tmp_path / "clips", "ab")
    runs[0](small(data=folder, steps=1))
    clips(tmp_path / "more", "c")
    (tmp_path / "more" / "c.gif").rename(tmp_path / "clips" / "c.gif")
    _, heard = runs[0](small(data=folder, steps=2))
    assert any("changed since this run started" in note for note in heard.notes)
    assert list(heard.losses) == [2]
