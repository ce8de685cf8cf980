"""Colour matching to adjacent given frames, or to an anchor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kinema.canvas import Block, Canvas
from kinema.media.matching import match_colours
from kinema.schema import BadRequest, Shape


def canvas_of(video: torch.Tensor, given: slice = slice(0, 1)) -> Canvas:
    mask = torch.zeros_like(video[:, :1])
    mask[:, :, given] = 1
    return Canvas.of(video * mask, mask)


@pytest.fixture
def video() -> torch.Tensor:
    """Two moving clips with constant colours in the middle of the range, so that drift stays within it."""
    first = (torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5) * 0.8
    return torch.stack([first.roll(t, dims=-1) for t in range(6)], dim=2)


@pytest.mark.parametrize("given", [slice(0, 1), slice(0, 3), slice(3, 6), slice(0, 6, 5)])
def test_a_gain_and_an_offset_of_each_channel_are_undone_at_the_seam(video, given):
    gain = torch.tensor([0.8, 1.3, 1.0])[:, None, None, None]
    offset = torch.tensor([0.1, -0.2, 0.05])[:, None, None, None]
    drifted = video * gain + offset
    assert torch.allclose(match_colours(drifted, canvas_of(video, given), "seam"), video, atol=1e-5)


def test_the_output_at_given_frames_is_ignored(video):
    """A model need not reproduce given frames: zoetrope's output there is noise."""
    drifted = video * 0.8
    drifted[:, :, 0] = torch.rand(2, 3, 8, 8)
    assert torch.allclose(match_colours(drifted, canvas_of(video), "seam")[:, :, 1:], video[:, :, 1:], atol=1e-5)


def test_each_clip_is_matched_separately(video):
    drifted = torch.stack([video[0] * 0.7, video[1] + 0.2])
    both = match_colours(drifted, canvas_of(video), "seam")
    for i in range(2):
        single = match_colours(drifted[i : i + 1], canvas_of(video[i : i + 1]), "seam")
        assert torch.allclose(both[i : i + 1], single, atol=1e-6)


def test_an_anchor_sets_mean_and_contrast_of_the_whole_clip(video):
    matched = match_colours(video * 0.6 + 0.3, canvas_of(video), "anchor")
    assert torch.allclose(matched, video, atol=1e-5)
    other = (torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) - 0.5) * 0.6
    anchored = replace(canvas_of(video), block=Block(anchor=other))
    by_anchor = match_colours(video, anchored, "anchor")
    assert torch.allclose(by_anchor.mean((2, 3, 4)), other.mean((2, 3)), atol=1e-5)
    spread = [x.flatten(2).std(2, correction=0) for x in (by_anchor, other)]
    assert torch.allclose(*spread, atol=1e-5)


def test_free_or_no_given_frames_leave_the_clip_unchanged(video):
    assert match_colours(video, canvas_of(video), "free") is video
    nothing = Canvas(Shape.of(video))
    assert torch.equal(match_colours(video, nothing, "seam"), video)


def test_a_flat_image_is_shifted_but_not_amplified():
    flat = torch.full((1, 3, 4, 8, 8), 0.2)
    given = torch.full((1, 3, 4, 8, 8), 0.5)
    assert torch.allclose(match_colours(flat, canvas_of(given), "seam"), given)
    noisy = flat + torch.randn(flat.shape) * 1e-5
    assert (match_colours(noisy, canvas_of(given), "seam") - given).abs().max() < 1e-3


def test_the_contrast_correction_is_limited_to_a_factor_of_two(video):
    matched = match_colours(video * 0.1, canvas_of(video), "seam")
    assert torch.allclose(matched.flatten(2).std(2), video.flatten(2).std(2) * 0.2, rtol=1e-4)


def test_a_missing_anchor_and_an_unknown_mode_are_refused(video):
    nothing = Canvas(Shape.of(video))
    with pytest.raises(BadRequest, match="needs a given whole frame"):
        match_colours(video, nothing, "anchor")
    with pytest.raises(BadRequest, match="expected free, seam or anchor"):
        match_colours(video, nothing, "blue")
