"""Outlines as signed distances, and the marks that make rotation visible.

Local coordinates: x to the right, y down, in units of the object's radius (half its diameter), so a
ball is the unit disc and every outline is within ``EXTENT``. Distances are negative inside.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]

EXTENT = 1.25
_GRID = 97
_REACH = 1.5
_BOLD = 0.09
"""Letters are thickened by this; a regular stroke would be two pixels wide at 64 × 64."""


def distance(glyph: str, x: Floats, y: Floats) -> Floats:
    """Signed distance to the outline of a shape, or of a capital letter, at local points."""
    return _OUTLINES[glyph](x, y) if glyph in _OUTLINES else _letter(glyph, x, y)


def _ball(x: Floats, y: Floats) -> Floats:
    return np.sqrt(x * x + y * y) - np.float32(1.0)


def _box(x: Floats, y: Floats) -> Floats:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.86)


def _triangle(x: Floats, y: Floats) -> Floats:
    # The centroid is at the origin, the centre of rotation: inradius 0.6, circumradius 1.2.
    sides = np.abs(x) * np.float32(np.sqrt(3) / 2) - y * np.float32(0.5)
    return np.maximum(sides, y) - np.float32(0.6)


def _star(x: Floats, y: Floats) -> Floats:
    # Folded into a tenth of a full turn, the outline is one straight edge from a tip to a notch.
    tip, notch, half = 1.2, 0.52, np.pi / 5
    turn = np.arctan2(x, -y)
    turn = np.abs(turn - np.round(turn / np.float32(2 * half)) * np.float32(2 * half))
    edge = np.array([notch * np.cos(half) - tip, notch * np.sin(half)])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    lean = np.arctan2(normal[1], normal[0])
    radius = np.sqrt(x * x + y * y)
    return radius * np.cos(turn - np.float32(lean)) - np.float32(normal[0] * tip)


def _ring(x: Floats, y: Floats) -> Floats:
    return np.abs(np.sqrt(x * x + y * y) - np.float32(0.8)) - np.float32(0.26)


def _heart(x: Floats, y: Floats) -> Floats:
    # A square rotated by 45° with a disc on each of its upper sides.
    half = 0.63
    reach = np.float32(half / np.sqrt(2))
    side, y = np.abs(x), y - np.float32(0.146 * half)
    square = (side + np.abs(y)) * np.float32(np.sqrt(0.5))
    lobe = np.sqrt((side - reach) ** 2 + (y + reach) ** 2)
    return np.minimum(square, lobe) - np.float32(half)


_OUTLINES = {"ball": _ball, "box": _box, "triangle": _triangle, "star": _star, "ring": _ring, "heart": _heart}


def _letter(letter: str, x: Floats, y: Floats) -> Floats:
    """Bilinear look-up in the letter's distance grid."""
    grid = letter_grid(letter)
    scale = np.float32((_GRID - 1) / (2 * _REACH))
    top = np.float32(_GRID - 1.001)
    column = np.clip((x + np.float32(_REACH)) * scale, 0, top)
    row = np.clip((y + np.float32(_REACH)) * scale, 0, top)
    left, upper = column.astype(np.int32), row.astype(np.int32)
    column -= left
    row -= upper
    flat, corner = grid.ravel(), upper * _GRID + left
    high = flat[corner] * (1 - column) + flat[corner + 1] * column
    low = flat[corner + _GRID] * (1 - column) + flat[corner + _GRID + 1] * column
    return high + (low - high) * row


@lru_cache(maxsize=64)
def letter_grid(letter: str) -> Floats:
    """Signed distances ``[97, 97]`` over ±1.5 radii to a capital of Pillow's bundled font."""
    from PIL import Image, ImageDraw, ImageFont

    side = 2 * (_GRID - 1)
    unit = side / (2 * _REACH)
    left, top, right, bottom = ImageFont.load_default(size=100).getbbox(letter)
    # Capitals are about 2.2 radii high; wide ones shrink to fit the box.
    points = 100 * unit * min(2.1 / (bottom - top), 2.1 / (right - left))
    font = ImageFont.load_default(size=points)
    left, top, right, bottom = font.getbbox(letter)
    image = Image.new("L", (side, side))
    ImageDraw.Draw(image).text(((side - left - right) / 2, (side - top - bottom) / 2), letter, fill=255, font=font)
    inside = np.asarray(image) > 127
    signed = np.pad((_to_nearest(inside) - _to_nearest(~inside)) / unit, 1, mode="edge")
    # Grid points are the corners of every second pixel.
    corners = (signed[:-1, :-1] + signed[1:, :-1] + signed[:-1, 1:] + signed[1:, 1:])[::2, ::2] / 4
    return (corners - _BOLD).astype(np.float32)


def _to_nearest(mask: NDArray[np.bool_], most: int = 48) -> Floats:
    """Distance in pixels to the nearest true pixel's centre, up to ``most``, by rows and then columns."""
    squares = np.where(mask, np.float32(0), np.float32(most * most))
    for axis in (0, 1):
        source = np.moveaxis(squares.copy(), axis, 0)
        target = np.moveaxis(squares, axis, 0)
        for step in range(1, most):
            np.minimum(target[step:], source[:-step] + np.float32(step * step), out=target[step:])
            np.minimum(target[:-step], source[step:] + np.float32(step * step), out=target[:-step])
    return np.sqrt(squares)


# --------------------------------------------------------------------------------------- marks


def mark(kind: str, x: Floats, y: Floats, sharp: float) -> Floats:
    """The weight of the second tone at local points, 0 to 1; ``sharp`` is pixels per radius."""
    return _MARKS[kind](x, y, np.float32(sharp))


def _wedge(x: Floats, y: Floats, k: np.float32) -> Floats:
    return _step(x * k) * _step(y * k)


def _half(x: Floats, y: Floats, k: np.float32) -> Floats:  # noqa: ARG001 - marks share one signature
    return _step(y * k)


def _quarters(x: Floats, y: Floats, k: np.float32) -> Floats:
    return _step(x * y * (k * np.float32(2.0)))


def _band(x: Floats, y: Floats, k: np.float32) -> Floats:  # noqa: ARG001
    return _step((np.float32(0.24) - np.abs(x + np.float32(0.28))) * k)


def _stripes(x: Floats, y: Floats, k: np.float32) -> Floats:  # noqa: ARG001
    wave = np.abs(x - np.round(x / np.float32(0.8)) * np.float32(0.8))
    return _step((np.float32(0.17) - wave) * k)


def _dots(x: Floats, y: Floats, k: np.float32) -> Floats:
    dots = [(0.0, -0.55), (0.5, 0.28), (-0.42, 0.3)]
    nearest = np.minimum.reduce([(x - np.float32(u)) ** 2 + (y - np.float32(v)) ** 2 for u, v in dots])
    return _step((np.float32(0.22) - np.sqrt(nearest)) * k)


def _spot(x: Floats, y: Floats, k: np.float32) -> Floats:
    away = np.sqrt((x + np.float32(0.36)) ** 2 + (y + np.float32(0.36)) ** 2)
    return _step((np.float32(0.34) - away) * np.minimum(k, np.float32(4.0)))


def _step(pixels: Floats) -> Floats:
    pixels += np.float32(0.5)
    return np.clip(pixels, np.float32(0), np.float32(1), out=pixels)


_MARKS = {
    "wedge": _wedge,
    "quarters": _quarters,
    "band": _band,
    "stripes": _stripes,
    "dots": _dots,
    "spot": _spot,
    "half": _half,
}
MARKS = tuple(_MARKS)[:-1]
"""The marks of shapes; letters have "wedge" and "half"."""
