"""Colours brought back to those of the frames beside, or to one frame."""

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
    """Two clips that move and keep their colours, in the middle of the range, so that a drift stays within it."""
    first = (torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5) * 0.8
    return torch.stack([first.roll(t, dims=-1) for t in range(6)], dim=2)


@pytest.mark.parametrize("given", [slice(0, 1), slice(0, 3), slice(3, 6), slice(0, 6, 5)])
def test_a_gain_and_an_offset_of_each_channel_are_undone_at_the_seam(video, given):
    gain = torch.tensor([0.8, 1.3, 1.0])[:, None, None, None]
    offset = torch.tensor([0.1, -0.2, 0.05])[:, None, None, None]
    drifted = video * gain + offset
    assert torch.allclose(match_colours(drifted, canvas_of(video, given), "seam"), video, atol=1e-5)


def test_what_came_out_where_frames_were_given_counts_for_nothing(video):
    """A model that is shown frames need not repeat them: zoetrope's output there is noise."""
    drifted = video * 0.8
    drifted[:, :, 0] = torch.rand(2, 3, 8, 8)
    assert torch.allclose(match_colours(drifted, canvas_of(video), "seam")[:, :, 1:], video[:, :, 1:], atol=1e-5)


def test_each_clip_is_matched_by_itself(video):
    drifted = torch.stack([video[0] * 0.7, video[1] + 0.2])
    both = match_colours(drifted, canvas_of(video), "seam")
    for i in range(2):
        single = match_colours(drifted[i : i + 1], canvas_of(video[i : i + 1]), "seam")
        assert torch.allclose(both[i : i + 1], single, atol=1e-6)


def test_an_anchor_gives_the_whole_its_mean_and_contrast(video):
    made = match_colours(video * 0.6 + 0.3, canvas_of(video), "anchor")
    assert torch.allclose(made, video, atol=1e-5)
    other = (torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) - 0.5) * 0.6
    told = replace(canvas_of(video), block=Block(anchor=other))
    by_anchor = match_colours(video, told, "anchor")
    assert torch.allclose(by_anchor.mean((2, 3, 4)), other.mean((2, 3)), atol=1e-5)
    spread = [x.flatten(2).std(2, correction=0) for x in (by_anchor, other)]
    assert torch.allclose(*spread, atol=1e-5)


def test_free_and_nothing_given_leave_it_as_it_is(video):
    assert match_colours(video, canvas_of(video), "free") is video
    nothing = Canvas(Shape.of(video))
    assert torch.equal(match_colours(video, nothing, "seam"), video)


def test_a_flat_picture_moves_and_is_not_blown_up():
    flat = torch.full((1, 3, 4, 8, 8), 0.2)
    given = torch.full((1, 3, 4, 8, 8), 0.5)
    assert torch.allclose(match_colours(flat, canvas_of(given), "seam"), given)
    noisy = flat + torch.randn(flat.shape) * 1e-5
    assert (match_colours(noisy, canvas_of(given), "seam") - given).abs().max() < 1e-3


def test_a_contrast_that_is_another_picture_s_is_followed_by_half_at_most(video):
    made = match_colours(video * 0.1, canvas_of(video), "seam")
    assert torch.allclose(made.flatten(2).std(2), video.flatten(2).std(2) * 0.2, rtol=1e-4)


def test_an_anchor_that_is_not_there_and_another_way_are_refused(video):
    nothing = Canvas(Shape.of(video))
    with pytest.raises(BadRequest, match="no whole frame is given"):
        match_colours(video, nothing, "anchor")
    with pytest.raises(BadRequest, match="expected free, seam or anchor"):
        match_colours(video, nothing, "blue")
