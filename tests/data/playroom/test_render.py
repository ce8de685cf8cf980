"""Rendering: anti-aliasing, surfaces, backgrounds, determinism."""

from __future__ import annotations

import numpy as np
import pytest

from kinema.data.playroom import BACKGROUNDS, LETTERS, SHAPES, sample
from kinema.data.playroom.shapes import EXTENT, distance, letter_grid


def vivid(video: np.ndarray) -> np.ndarray:
    """The coverage of each pixel [T, H, W] by a saturated object on plain grey."""
    chroma = video.max(axis=0) - video.min(axis=0)
    return np.clip(chroma / np.quantile(chroma, 0.995), 0, 1)


def test_clips_are_float32_in_range_and_deterministic():
    first, again, other = sample(1, grammar="full"), sample(1, grammar="full"), sample(2, grammar="full")
    assert first.video_CTHW.shape == (3, 16, 64, 64)
    assert first.video_CTHW.dtype == np.float32
    assert first.video_CTHW.min() >= -1
    assert first.video_CTHW.max() <= 1
    assert np.array_equal(first.video_CTHW, again.video_CTHW)
    assert not np.array_equal(first.video_CTHW, other.video_CTHW)


@pytest.mark.parametrize("size", [(1, 8, 8), (3, 20, 52), (5, 130, 70)])
def test_any_size_and_length_can_be_rendered(size: tuple[int, int, int]):
    frames, height, width = size
    for seed in range(5):
        video = sample(seed, frames=frames, height=height, width=width, grammar="mixed").video_CTHW
        assert video.shape == (3, *size)
        assert np.isfinite(video).all()


def test_a_ball_covers_the_area_and_position_of_its_track():
    rendered = sample(0, caption="a red ball moves right on a plain black background", height=64, width=96)
    (track,) = rendered.scene.objects
    # Its mark is a different red; anything clearly brighter than black is the ball.
    ball = (rendered.video_CTHW[0] > -0.5).astype(float)
    x = np.arange(96) + 0.5
    for t in (0, 7, 15):
        assert ball[t].sum() == pytest.approx(np.pi * (track.size_T[t] * 32) ** 2, rel=0.04)
        assert (ball[t].sum(axis=0) @ x) / ball[t].sum() / 96 == pytest.approx(track.position_T2[t, 0], abs=0.004)


def test_a_downsampled_clip_equals_a_smaller_rendering():
    for seed in range(6):
        large = sample(seed, height=128, width=128, frames=4).video_CTHW
        small = sample(seed, height=64, width=64, frames=4).video_CTHW
        pooled = large.reshape(3, 4, 64, 2, 64, 2).mean(axis=(3, 5))
        assert np.abs(pooled - small).mean() < 0.006
        assert np.quantile(np.abs(pooled - small), 0.999) < 0.3


@pytest.mark.parametrize("shape", SHAPES[:-1])
def test_rotation_of_every_shape_is_visible(shape: str):
    for seed in range(3):
        video = sample(seed, motion="spins", shape=shape, split="all", background="plain grey").video_CTHW
        assert np.abs(np.diff(video, axis=1)).max() > 0.2


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_named_backgrounds_are_rendered(name: str):
    rendered = sample(3, background=name, colour="red", split="all")
    corner = rendered.video_CTHW[:, 0]
    assert rendered.scene.background == name
    plain = np.ptp(corner[:, :3, :], axis=(1, 2)).max() < 1e-6
    assert plain == name.startswith("plain")


def test_unnamed_backgrounds_are_muted():
    for seed in range(60):
        rendered = sample(seed)
        rim = np.concatenate([rendered.video_CTHW[:, 0, 0], rendered.video_CTHW[:, 0, -1]], axis=1)
        chroma = (rim.max(axis=0) - rim.min(axis=0)) / 2
        if rendered.scene.background != "grass and sky":
            assert np.median(chroma) < 0.2
        if rendered.scene.objects[0].colour == "white":
            assert np.median(rim) < 0.3


def test_fading_objects_nearly_disappear():
    video = sample(0, caption="a red ball fades on a plain grey background").video_CTHW
    chroma = (video.max(axis=0) - video.min(axis=0)).max(axis=(1, 2))
    assert chroma[-1] < 0.2 * chroma[0]


def test_the_front_object_occludes_the_other():
    rendered = sample(0, caption="a red ball moves right behind a blue box on a plain grey background")
    first, second = rendered.scene.objects
    t = int(np.argmin(first.visible_T))
    x, y = (second.position_T2[t] * 64).astype(int)
    red, _, blue = rendered.video_CTHW[:, t, y, x]
    assert blue > red


@pytest.mark.parametrize("glyph", [*SHAPES[:-1], "A", "W", "I", "Q"])
def test_outlines_are_distances_within_their_extent(glyph: str):
    line = np.linspace(-1.45, 1.45, 291, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    d = distance(glyph, x, y)
    inside = d < 0
    assert 0.05 < inside.mean() < 0.5
    assert np.abs(x[inside]).max() <= EXTENT
    assert np.abs(y[inside]).max() <= EXTENT
    slope = np.hypot(*np.gradient(d, line, line))[np.abs(d) < 0.03]
    assert np.median(slope) == pytest.approx(1, abs=0.08)


def test_letters_are_distinguishable():
    masks = {letter: letter_grid(letter) < 0 for letter in LETTERS}
    for i, one in enumerate(LETTERS):
        for other in LETTERS[i + 1 :]:
            union = (masks[one] | masks[other]).sum()
            assert (masks[one] & masks[other]).sum() / union < 0.9
