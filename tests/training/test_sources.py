"""Where clips come from, and a run on real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kinema.schema import BadRequest
from kinema.training.options import TrainOptions
from kinema.training.setup import prepare
from kinema.training.sources import open_source


def clips(folder, names, frames=8):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for name in names:
        made = [Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)) for _ in range(frames)]
        made[0].save(folder / f"{name}.gif", save_all=True, append_images=made[1:], duration=120)
        (folder / f"{name}.txt").write_text(f"a red {name}")
    return str(folder)


def source(**told):
    options = TrainOptions(model="zoetrope/tiny", **told)
    system, recipe = prepare(options)
    return open_source(options, system, recipe), system, recipe


def test_playroom_is_rendered_at_the_models_size_and_holds_prompts_out():
    found, system, _ = source()
    own = system.family.sampling.defaults(system.config)
    video, caption, scene, *_ = found.train.clip(0)
    assert video.shape == (3, own.frames, own.height, own.width)
    trained = {found.train.clip(i)[1] for i in range(40)}
    held = {found.held_out.clip(i)[1] for i in range(40)}
    assert caption
    assert scene
    assert trained.isdisjoint(held)


def test_a_run_says_how_the_playroom_is_rendered_as_runs_before_did_and_options_change_what_they_name():
    """What stands in checkpoints of runs that are to be taken up."""

    def said(model, **told):
        options = TrainOptions(model=model, **told)
        system, recipe = prepare(options)
        return open_source(options, system, recipe).identity

    mixed = {"source": "playroom", "grammar": "mixed"}
    assert said("zoetrope/tiny") == said("vdm/tiny") == mixed  # with figures of its own, and with none
    slow = {"source": "playroom", "grammar": "simple", "slow": 4.0, "without": ["fades"]}
    assert said("svd/pocket") == slow
    assert said("svd/pocket", camera="pans left", style="night") == {**slow, "camera": "pans left", "style": "night"}
    assert said("vdm/tiny", grammar="full") == {**mixed, "grammar": "full"}


def test_a_folders_clips_come_at_the_models_rate_or_as_filmed(tmp_path):
    folder = clips(tmp_path / "clips", "ab")
    found, system, _ = source(data=folder)
    assert (found.train.fps, found.train.frameskip) == (system.family.sampling.defaults(system.config).fps, 1)
    found, _, recipe = source(data=folder, frameskip=2)
    assert (found.train.fps, found.train.frameskip, recipe.frameskip) == (None, 2, 2)
    found, *_ = source(data=folder, frameskip=1)
    assert (found.train.fps, found.train.frameskip) == (None, 1)


def test_prompts_of_sheets_are_held_out_captions(tmp_path):
    found, *_ = source(data=clips(tmp_path / "clips", "abc"))
    assert list(found.prompts) == [e.captions[0] for e in found.held_out.entries]


def test_one_bad_clip_never_refuses_a_folder_wherever_the_split_puts_it(tmp_path):
    """With three clips the held-out part is one: whichever is damaged, training goes on with the others."""
    for bad in "abc":
        folder = Path(clips(tmp_path / bad, "abc"))
        (damaged,) = folder.glob(f"{bad}.*[!t]")
        damaged.write_bytes(b"no video")
        found, *_ = source(data=str(folder))
        assert found.train.clip(0)[0].ndim == 4
        assert found.held_out.clip(0)[0].ndim == 4


def test_a_data_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadRequest, match="expected 'playroom' or a folder"):
        source(data=str(tmp_path / "none"))


def test_a_run_on_real_clips_trains_resumes_and_says_what_it_left_out(runs, small, tmp_path):
    folder = clips(tmp_path / "clips", "abcd")
    (tmp_path / "clips" / "broken.gif").write_bytes(b"GIF89a")
    whole, heard = runs[0](small("whole", data=folder, steps=4))
    assert any("broken.gif is left out" in note for note in heard.notes)
    runs[0](small(data=folder, steps=4, save_every=2))
    for path in (tmp_path / "run").glob("step-00000004*"):
        path.unlink()
    _, again = runs[0](small(data=folder, steps=4))
    assert again.losses == {step: heard.losses[step] for step in (3, 4)}
    with pytest.raises(BadRequest, match="has data folder, not playroom"):
        runs[0](small(steps=5))
    with pytest.raises(BadRequest, match="flip False, not True"):
        runs[0](small(data=folder, flip=True))


def test_a_folder_with_other_clips_goes_on_and_says_so(runs, small, tmp_path):
    folder = clips(tmp_path / "clips", "ab")
    runs[0](small(data=folder, steps=1))
    clips(tmp_path / "more", "c")
    (tmp_path / "more" / "c.gif").rename(tmp_path / "clips" / "c.gif")
    _, heard = runs[0](small(data=folder, steps=2))
    assert any("holds other clips than when this run began" in note for note in heard.notes)
    assert list(heard.losses) == [2]
