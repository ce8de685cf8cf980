"""Playroom drawn anew: fixed functions of pixels that leave things where they are and are told by their ground."""

from __future__ import annotations

import pytest
import torch

from kinema.data import playroom, styles
from kinema.evaluation.oracle import judge
from kinema.schema import BadRequest

PROMPTS = ("a red ball rolls right", "a white star moves up", "a blue letter A slides left", "a cyan ring moves down")


def clips(prompts=PROMPTS):
    made = [playroom.sample(i, frames=8, fps=6.0, caption=p).video_CTHW for i, p in enumerate(prompts)]
    return [torch.from_numpy(video) for video in made]


@pytest.mark.parametrize("style", styles.STYLES)
def test_a_style_is_of_each_frame_alone_and_in_range(style):
    video = clips()[0]
    drawn = styles.apply(style, video)
    assert drawn.shape == video.shape
    assert float(drawn.abs().max()) <= 1
    assert not torch.equal(drawn, video)
    torch.testing.assert_close(styles.apply(style, video[:, 3:4]), drawn[:, 3:4])


@pytest.mark.parametrize("style", styles.STYLES)
def test_the_oracle_sees_the_same_colour_and_direction_in_a_style(style):
    for prompt, video in zip(PROMPTS, clips(), strict=True):
        seen = judge(styles.apply(style, video), prompt, 6.0)
        assert (seen.colour_right, seen.direction_right) == (True, True), prompt


def test_the_share_of_a_styles_ground_tells_it_from_the_other_and_from_none():
    for style, other in (("outline", "night"), ("night", "outline")):
        for video in clips():
            assert styles.share(style, styles.apply(style, video)) > 0.8
            assert styles.share(style, styles.apply(other, video)) < 0.5
    plain = clips(["a red ball rolls right on a light background"])[0]
    assert max(styles.share(style, plain) for style in styles.STYLES) < 0.1


def test_lines_are_where_colours_change():
    pixels = torch.zeros(3, 1, 16, 16)
    pixels[0, :, :, 8:] = 1
    assert styles.lines(pixels)[0, :, 7:9].min() == 1
    assert styles.lines(pixels)[0, :, [2, 13]].max() == 0


def test_no_style_is_the_clip_itself_and_an_unknown_one_is_refused():
    video = clips()[0]
    assert styles.apply("", video) is video
    with pytest.raises(BadRequest, match="no style 'cubist'; there are outline, night"):
        styles.apply("cubist", video)
