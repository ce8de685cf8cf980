"""The backdrop and the object's colours are anchored to given pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import kinema
from kinema.data import playroom
from kinema.families.zoetrope import warp
from kinema.families.zoetrope.anchoring import anchor_to_given, colours_from_given
from kinema.families.zoetrope.family import FAMILY

SIDE, FRAMES = 32, 4


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def with_hole(share: float = 0.0, given: int = 1) -> torch.Tensor:
    """Membership of the background: 1 in the given first frames, ``share`` inside a square, 0 elsewhere."""
    ground = torch.zeros(1, 1, FRAMES, SIDE, SIDE, dtype=torch.float64)
    ground[:, :, :given] = 1
    ground[:, :, :given, 8:24, 8:24] = share
    return ground


def test_without_given_pixels_the_image_is_unchanged() -> None:
    backdrop, given = noise(1, 3, SIDE, SIDE), noise(1, 3, FRAMES, SIDE, SIDE)
    assert torch.equal(anchor_to_given(backdrop, torch.zeros(1, 1, FRAMES, SIDE, SIDE).double(), given), backdrop)


@pytest.mark.parametrize("sides", [(32, 32), (7, 7), (31, 33), (5, 64), (1, 16)])
def test_a_fully_given_image_is_returned_as_given(sides: tuple[int, int]) -> None:
    true = noise(1, 3, *sides)
    every = torch.ones(1, 1, FRAMES, *sides, dtype=torch.float64)
    result = anchor_to_given(noise(2, 3, *sides)[1:], every, true[:, :, None].expand(-1, -1, FRAMES, -1, -1))
    torch.testing.assert_close(result, true)


def test_corrections_extrapolate_into_holes() -> None:
    true = noise(1, 3, SIDE, SIDE)
    result = anchor_to_given(true - 0.2, with_hole(), true[:, :, None].expand(-1, -1, FRAMES, -1, -1))
    torch.testing.assert_close(result, true)  # also in the hole, which is not given


def test_far_corrections_stay_within_the_given_ones() -> None:
    ground = torch.zeros(1, 1, FRAMES, SIDE, SIDE, dtype=torch.float64)
    ground[:, :, 0, :, :4] = 1
    off = anchor_to_given(torch.zeros(1, 3, SIDE, SIDE).double(), ground, torch.full_like(ground, 0.3))
    assert off.min() >= 0
    assert off.max() <= 0.3 + 1e-9
    torch.testing.assert_close(off[..., :3], torch.full_like(off[..., :3], 0.3))  # one column is the edge


@pytest.mark.parametrize("given", [1, FRAMES])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.8])
def test_an_object_does_not_leak_into_the_background(share: float, given: int) -> None:
    """Neither does its edge: the object is one pixel larger than its estimated coverage."""
    object_clip = torch.zeros(1, 3, FRAMES, SIDE, SIDE, dtype=torch.float64)
    object_clip[..., 7:25, 7:25] = 1.0
    result = anchor_to_given(torch.zeros(1, 3, SIDE, SIDE).double(), with_hole(share, given), object_clip)
    assert result.abs().max() < 1e-9


def test_pixels_that_differ_between_given_frames_are_ignored() -> None:
    ground = torch.ones(1, 1, FRAMES, SIDE, SIDE, dtype=torch.float64)
    moved = noise(1, 3, FRAMES, SIDE, SIDE)
    result = anchor_to_given(torch.zeros(1, 3, SIDE, SIDE).double(), ground, moved)
    assert result.square().mean() < 0.02 * moved.mean(2).square().mean()  # some pixels of noise agree by chance


def test_clips_of_a_batch_are_independent() -> None:
    ground = with_hole().expand(2, -1, -1, -1, -1).clone()
    ground[1] = 0
    backdrop, given = noise(2, 3, SIDE, SIDE), noise(2, 3, FRAMES, SIDE, SIDE)
    result = anchor_to_given(backdrop, ground, given)
    assert torch.equal(result[1], backdrop[1])
    torch.testing.assert_close(result[:1], anchor_to_given(backdrop[:1], ground[:1], given[:1]))


def object_over_ground(visible: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, warp.Pose]:
    """A disc of four colours that rotates and moves: sprite, frames, background, coverage and pose."""
    along = warp.texel_centres(SIDE, torch.zeros(1, dtype=torch.float64))
    y, x = torch.meshgrid(along, along, indexing="ij")
    colours = torch.stack([(x > 0).double(), (y > 0).double(), 0.5 * torch.ones_like(x)]) - 0.2
    sprite = torch.cat([colours, ((x.square() + y.square()).sqrt() - 1)[None]])[None]
    t = torch.arange(FRAMES, dtype=torch.float64)[None]
    one = torch.ones_like(t)
    pose = warp.Pose(torch.stack([24 + 4 * t, 30 + t], -1), 12 * one, 0.3 * t, visible * one)
    colour, cover = warp.to_frames(sprite, pose, 64, 64)
    ground = -0.5 * torch.ones_like(colour)
    return sprite, torch.lerp(ground, colour, cover * visible), ground, cover, pose


@pytest.mark.parametrize("visible", [1.0, 0.8])
def test_object_colours_are_taken_from_the_given_frame(visible: float) -> None:
    sprite, frames, ground, cover, pose = object_over_ground(visible)
    first = torch.tensor([1.0, 0, 0, 0]).double()[:, None, None].expand_as(cover)
    wrong = torch.zeros_like(sprite[:, :-1])
    result = colours_from_given(wrong, frames, ground, cover, first, pose)
    inside = sprite[:, -1:] < -0.25  # edges mix with the background
    off = (result - sprite[:, :-1]).abs() * inside
    quarters = (warp.texel_centres(SIDE, sprite).abs() > 0.15).double()  # colours are interpolated at their borders
    off = off * quarters * quarters[:, None]
    assert off.max() < 0.02


def test_a_faint_object_keeps_its_estimated_colours() -> None:
    sprite, frames, ground, cover, pose = object_over_ground(0.3)
    assert torch.equal(
        colours_from_given(sprite[:, :-1], frames, ground, cover, torch.ones_like(cover), pose), sprite[:, :-1]
    )


def test_only_one_of_two_given_frames_determines_the_colours() -> None:
    sprite, frames, ground, cover, pose = object_over_ground(1.0)
    turned = pose._replace(angle_BT=pose.angle_BT + torch.tensor([0, 0, 0, torch.pi]))
    both, first = (torch.tensor(at).double()[:, None, None].expand_as(cover) for at in ([1, 0, 0, 1], [1, 0, 0, 0]))
    wrong = torch.zeros_like(sprite[:, :-1])
    alone = colours_from_given(wrong, frames, ground, cover, first, pose)
    torch.testing.assert_close(colours_from_given(wrong, frames, ground, cover, both, turned), alone)


def test_a_partly_given_object_keeps_its_estimated_colours() -> None:
    sprite, frames, ground, cover, pose = object_over_ground(1.0)
    half = torch.zeros_like(cover)
    half[..., :30] = 1
    colours = torch.zeros_like(sprite[:, :-1])
    assert torch.equal(colours_from_given(colours, frames, ground, cover, half, pose), colours)


def test_given_background_anchors_the_backdrop_unless_covered() -> None:
    torch.manual_seed(0)
    model = FAMILY.build(FAMILY.presets["tiny-sprite"]).eval()
    with torch.no_grad():
        model.backdrop.share.weight.zero_()
        model.backdrop.share.bias.fill_(50.0)  # everything is background
        model.sprite.cover.weight.zero_()
        model.sprite.cover.bias.fill_(-50.0)
    given, mask = torch.rand(1, 3, 8, 16, 16) - 0.5, torch.zeros(1, 1, 8, 16, 16)
    mask[:, :, 0] = 1
    inputs = torch.randn(1, 3, 8, 16, 16), torch.zeros(1), torch.ones(1, 20, dtype=torch.long), given, mask
    result = model(*inputs)
    torch.testing.assert_close(result.sprite.backdrop_BCTHW, given[:, :, :1].expand_as(result.backdrop))
    torch.testing.assert_close(result.x0, result.sprite.backdrop_BCTHW)  # a sprite without coverage has no share
    with torch.no_grad():
        model.sprite.cover.bias.fill_(50.0)
    covered = model(*inputs)
    torch.testing.assert_close(covered.sprite.backdrop_BCTHW, covered.backdrop)


def test_animating_an_image_keeps_its_background_and_object_colours(tmp_path: Path) -> None:
    """A ring of two shades moves up over a chequered background, from the tuning share."""
    real = playroom.sample(2001, split="tuning")
    image = torch.from_numpy(real.video_CTHW)[:, 0]
    Image.fromarray(((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(tmp_path / "ring.png")
    result = kinema.load("zoetrope").animate(tmp_path / "ring.png", real.caption, steps=8, seed=3)
    off_CTHW = (result.video[0] - image[:, None]).abs()[:, 1:]
    # Background is 90 % of every frame. Without anchoring, half of all values were off by 0.06 or more.
    assert off_CTHW.flatten().quantile(0.5) < 0.01
    for shade in ((20, 141, 158), (30, 208, 232)):  # each has 148 pixels in the image
        colour = torch.tensor(shade)[:, None, None, None] / 127.5 - 1
        alike_THW = (result.video[0] - colour).abs().amax(0) < 0.1
        assert alike_THW.sum((1, 2)).min() > 74, shade
