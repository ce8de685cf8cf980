"""A clip made larger: the stage of super-resolution alone, on a clip that there is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kinema.api import Model, load
from kinema.families.vdm.config import presets
from kinema.families.vdm.family import FAMILY
from kinema.guide import smaller
from kinema.media.read import read_video
from kinema.schema import BadRequest, Clip
from kinema.system import System, Weights


@pytest.fixture(scope="module")
def large() -> Model:
    torch.set_num_threads(1)
    config = replace(presets()["tiny"], frames=9, side=32, attention_sides=(8, 16), sampling_steps=2)
    return Model(System("vdm/large", FAMILY, config, Weights(seed=1)))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    t = torch.linspace(-1, 1, 5)[None, None, :, None, None]
    video = (t * torch.linspace(-1, 1, 16)).expand(1, 3, 5, 16, 16).contiguous()
    return Clip(video, 8.0).save(tmp_path / "small")[0]


def test_it_is_the_second_stage_of_a_clip_that_the_first_leaves_as_it_is(large: Model, clip: Path) -> None:
    base = load("vdm", preset="tiny")
    base.system.runtime.beside("large", lambda: large.system)
    ask = {"seed": 3, "steps": 2, "super_resolution_weight": 4.0}
    both = base.edit(clip, "a red ball", strength=0.0, super_resolution="large", **ask)
    alone = large.upscale(clip, "a red ball", **ask)
    assert torch.equal(alone.video, both.video)
    (stage,) = alone.recipe["stages"]
    assert (stage["stage"], stage["enlarging"]) == ("super-resolution", {"factor": 2, "every": 1, "weight": 4.0})


def test_the_more_it_weighs_the_nearer_it_stays_to_the_clip(large: Model, clip: Path) -> None:
    known = read_video(clip).video
    apart = [
        (smaller(range(5), 2, large.upscale(clip, seed=1, super_resolution_weight=weight).video) - known)
        .square()
        .mean()
        for weight in (0.0, 4.0)
    ]
    assert apart[1] < 0.8 * apart[0]


def test_every_makes_frames_between_in_blocks_that_meet(large: Model, clip: Path) -> None:
    made = large.upscale(clip, seed=1, every=4)
    assert (made.shape.bcthw, made.fps) == ((1, 3, 20, 32, 32), 32.0)
    assert [block["start"] for block in made.recipe["stages"][0]["blocks"]] == [0, 8, 16]
    assert large.upscale(clip, seed=1, every=4, frames=9).shape.frames == 9


def test_the_size_says_how_many_times_and_scale_says_it_itself(large: Model, clip: Path) -> None:
    for told, times in (
        ({}, 2),
        ({"height": 48, "width": 52}, 2),
        ({"height": 48, "width": 48}, 3),
        ({"scale": 4, "height": 64, "width": 64}, 4),
    ):
        made = large.upscale(clip, seed=1, **told)
        assert made.recipe["stages"][0]["enlarging"]["factor"] == times


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (
            {"height": 16, "width": 16},
            "is 16×16, and 16×16 are asked for; upscale makes a clip at least twice as large",
        ),
        ({"scale": 3}, "these sides are not 3 times whole ones"),
        ({"every": 40}, "makes 320 fps of the 8"),
        ({"scale": 1}, "scale is 1; expected 2 to 16"),
        ({"super_resolution": "large"}, "upscale does not support --super-resolution"),
        ({"strength": 0.5}, "upscale does not support --strength"),
    ],
)
def test_what_enlarges_nothing_is_refused(large: Model, clip: Path, told: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        large.upscale(clip, seed=1, **told)


def test_a_model_of_latents_enlarges_no_clip(clip: Path) -> None:
    with pytest.raises(BadRequest, match="svd/tiny cannot enlarge a clip"):
        load("svd", preset="tiny").upscale(clip)
