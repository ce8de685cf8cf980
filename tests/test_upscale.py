"""The upscale task: super-resolution of the user's clip, without a base stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kinema.api import Model, load
from kinema.families.vdm.config import presets
from kinema.families.vdm.family import FAMILY
from kinema.guide import downsampled
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


def test_upscale_equals_super_resolution_of_an_unchanged_clip(large: Model, clip: Path) -> None:
    base = load("vdm", preset="tiny")
    base.system.runtime.beside("large", lambda: large.system)
    ask = {"seed": 3, "steps": 2, "super_resolution_weight": 4.0}
    both = base.edit(clip, "a red ball", strength=0.0, super_resolution="large", **ask)
    alone = large.upscale(clip, "a red ball", **ask)
    assert torch.equal(alone.video, both.video)
    (stage,) = alone.recipe["stages"]
    assert (stage["stage"], stage["enlarging"]) == ("super-resolution", {"factor": 2, "every": 1, "weight": 4.0})


def test_a_higher_weight_stays_closer_to_the_clip(large: Model, clip: Path) -> None:
    known = read_video(clip).video
    apart = [
        (downsampled(range(5), 2, large.upscale(clip, seed=1, super_resolution_weight=weight).video) - known)
        .square()
        .mean()
        for weight in (0.0, 4.0)
    ]
    assert apart[1] < 0.8 * apart[0]


def test_every_adds_frames_in_between_in_blocks_that_share_a_frame(large: Model, clip: Path) -> None:
    result = large.upscale(clip, seed=1, every=4)
    assert (result.shape.bcthw, result.fps) == ((1, 3, 20, 32, 32), 32.0)
    assert [block["start"] for block in result.recipe["stages"][0]["blocks"]] == [0, 8, 16]
    assert large.upscale(clip, seed=1, every=4, frames=9).shape.frames == 9


def test_the_factor_follows_from_the_size_or_from_scale(large: Model, clip: Path) -> None:
    for options, times in (
        ({}, 2),
        ({"height": 48, "width": 52}, 2),
        ({"height": 48, "width": 48}, 3),
        ({"scale": 4, "height": 64, "width": 64}, 4),
    ):
        result = large.upscale(clip, seed=1, **options)
        assert result.recipe["stages"][0]["enlarging"]["factor"] == times


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"height": 16, "width": 16},
            "is 16×16 and the output 16×16; expected at least twice the sides",
        ),
        ({"scale": 3}, "whose sides are not multiples of 3"),
        ({"every": 40}, "--every 40 would turn the 8 fps of .* into 320; expected at most 240"),
        ({"scale": 1}, "scale is 1; expected 2 to 16"),
        ({"super_resolution": "large"}, "upscale does not support --super-resolution"),
        ({"strength": 0.5}, "upscale does not support --strength"),
    ],
)
def test_invalid_sizes_and_options_are_refused(large: Model, clip: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        large.upscale(clip, seed=1, **options)


def test_a_latent_model_cannot_upscale(clip: Path) -> None:
    with pytest.raises(BadRequest, match="svd/tiny cannot upscale clips"):
        load("svd", preset="tiny").upscale(clip)
