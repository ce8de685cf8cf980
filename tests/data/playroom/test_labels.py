"""Scene graphs as classes on a grid."""

from __future__ import annotations

import numpy as np
import pytest

from kinema.data import playroom
from kinema.data.playroom import labels

GRID = (4, 8, 8)


def of(caption: str, seed: int = 0) -> np.ndarray:
    return labels.on_grid(playroom.sample(seed, caption=caption).scene, GRID)


def test_a_cell_has_glyph_colour_and_motion_or_no_object() -> None:
    glyph, colour, motion = of("a cyan letter Q rolls left")
    here = glyph > 0
    assert set(glyph[here]) == {1 + labels.GLYPHS.index("Q")}
    assert set(colour[here]) == {1 + labels.KINDS[1][1].index("cyan")}
    assert set(motion[here]) == {1 + labels.KINDS[2][1].index("rolls left")}
    assert not colour[~here].any()
    assert not motion[~here].any()
    assert labels.CLASSES == (33, 9, 21)


@pytest.mark.parametrize("seed", range(4))
def test_labels_match_the_rendered_object(seed: int) -> None:
    rendered = playroom.sample(seed, caption="a red box moves right", height=64, width=64)
    red = (rendered.video_CTHW[0] - rendered.video_CTHW[1:].max(0) > 0.6).reshape(4, 4, 8, 8, 8, 8).mean(axis=(1, 3, 5))
    here = labels.on_grid(rendered.scene, GRID)[0] > 0
    assert red[here].mean() > 0.6 > 0.1 > red[~here].mean()
    places = [np.argwhere(part)[:, 1].mean() for part in here]
    assert places == sorted(places)
    assert places[-1] - places[0] > 1


def test_the_front_object_takes_precedence_and_a_tiny_one_has_a_cell() -> None:
    rendered = playroom.sample(3, caption="a red ball moves right behind a blue box")
    first, second = rendered.scene.objects
    colour = labels.on_grid(rendered.scene, GRID)[1]
    blue = 1 + labels.KINDS[1][1].index("blue")
    x, y = (int(v * 8) for v in second.position_T2[0])
    assert (colour[:, y, x] == blue).all()
    first.size_T[:] = 0.01
    first.position_T2[:] = 0.05
    assert (labels.on_grid(rendered.scene, GRID)[0][:, 0, 0] > 0).all()


@pytest.mark.parametrize("caption", ["a red box spins", "a cyan star orbits", "a white letter W rolls up"])
def test_the_object_mask_contains_all_object_pixels_and_less_than_half_of_the_frame(caption: str) -> None:
    for height, width in ((64, 64), (48, 80)):
        rendered = playroom.sample(1, caption=f"{caption} on a plain black background", height=height, width=width)
        on = labels.object_mask(rendered.scene, height, width)
        bright = rendered.video_CTHW.max(0) > 0.3
        assert bright.any()
        assert not (bright & ~on).any()
        assert on.mean() < 0.4


@pytest.mark.parametrize("side", [64, 32])
def test_coverage_matches_the_rendered_outline(side: int) -> None:
    for caption in ("a white heart spins", "a white letter K rolls left", "a white ring rolls up"):
        rendered = playroom.sample(5, caption=f"{caption} on a plain black background", height=64, width=64)
        cover = labels.covered(rendered.scene, side, side)
        visible = (rendered.video_CTHW.max(0) > -0.5).reshape(16, side, 64 // side, side, 64 // side).mean(axis=(2, 4))
        assert np.abs(cover - visible).mean() < 0.02
        assert (np.abs(cover - visible) > 0.75).mean() < 1e-3
    ball = playroom.sample(5, caption="a red ball grows").scene
    area = np.pi * (0.5 * ball.objects[0].size_T) ** 2
    assert labels.covered(ball, 64, 64).mean(axis=(1, 2)) == pytest.approx(area, rel=0.02)
