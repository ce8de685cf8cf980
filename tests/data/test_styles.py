"""Styles of the playroom: fixed functions of pixels that keep objects and are detected by their background."""

from __future__ import annotations

import pytest
import torch

from kinema.data import playroom, styles
from kinema.evaluation.oracle import judge
from kinema.schema import BadRequest

PROMPTS = ("a red ball rolls right", "a white star moves up", "a blue letter A slides left", "a cyan ring moves down")


def clips(prompts=PROMPTS):
    videos = [playroom.sample(i, frames=8, fps=6.0, caption=p).video_CTHW for i, p in enumerate(prompts)]
    return [torch.from_numpy(video) for video in videos]


@pytest.mark.parametrize("style", styles.STYLES)
def test_a_style_applies_per_frame_and_stays_in_range(style):
    video = clips()[0]
    styled = styles.apply(style, video)
    assert styled.shape == video.shape
    assert float(styled.abs().max()) <= 1
    assert not torch.equal(styled, video)
    torch.testing.assert_close(styles.apply(style, video[:, 3:4]), styled[:, 3:4])


@pytest.mark.parametrize("style", styles.STYLES)
def test_the_oracle_judges_the_same_colour_and_direction_in_a_style(style):
    for prompt, video in zip(PROMPTS, clips(), strict=True):
        judged = judge(styles.apply(style, video), prompt, 6.0)
        assert (judged.colour_right, judged.direction_right) == (True, True), prompt


def test_the_background_share_distinguishes_styles():
    for style, other in (("outline", "night"), ("night", "outline")):
        for video in clips():
            assert styles.share(style, styles.apply(style, video)) > 0.8
            assert styles.share(style, styles.apply(other, video)) < 0.5
    plain = clips(["a red ball rolls right on a light background"])[0]
    assert max(styles.share(style, plain) for style in styles.STYLES) < 0.1


def test_lines_follow_colour_changes():
    pixels = torch.zeros(3, 1, 16, 16)
    pixels[0, :, :, 8:] = 1
    assert styles.lines(pixels)[0, :, 7:9].min() == 1
    assert styles.lines(pixels)[0, :, [2, 13]].max() == 0


def test_no_style_returns_the_clip_and_an_unknown_one_is_refused():
    video = clips()[0]
    assert styles.apply("", video) is video
    with pytest.raises(BadRequest, match="unknown style 'cubist'; expected one of outline, night"):
        styles.apply("cubist", video)
