"""Scene graphs on a grid: classes of the object at each cell, object positions and masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kinema.data.playroom.grammar import COLOURS, LETTERS, MOTIONS, SHAPES
from kinema.data.playroom.shapes import distance

if TYPE_CHECKING:
    from kinema.data.playroom.scene import Scene
    from kinema.data.playroom.shapes import Floats

GLYPHS = (*SHAPES[:-1], *LETTERS)
KINDS = (("glyph", GLYPHS), ("colour", COLOURS), ("motion", (*MOTIONS, "still")))
"""Attributes of a cell and their values; class 0 means no object, so value i is class i + 1."""
CLASSES = tuple(len(values) + 1 for _, values in KINDS)
_REACH = 0.4
"""Share of the diameter: an outline covers most of its disc within this radius."""
_MARGIN = 0.7
"""Share of the diameter: every outline is within this radius (a square's corners are at 0.5·√2)."""
_TURNS = {"ball": 0, "ring": 0, "box": 4, "triangle": 3, "star": 5}
"""Orders of rotational symmetry above 1. No letter has one, since it does not rotate about its centre."""


def on_grid(scene: Scene, grid: tuple[int, int, int]) -> NDArray[np.int64]:
    """Classes ``[3, t, h, w]`` (glyph, colour, motion) of the object that covers each cell in half its frames or more.

    The number of frames must be a multiple of t. Every object covers at least one cell. Later objects of the
    scene are in front and take precedence.
    """
    t, h, w = grid
    classes = np.zeros((3, t, h, w), np.int64)
    for track in scene.objects:
        far = _distances(track.position_T2, h, w).reshape(t, -1, h, w)
        cover_THW = (far < _REACH * track.size_T.reshape(t, -1, 1, 1)).mean(axis=1) >= 0.5
        nearest = far.mean(axis=1).reshape(t, -1).argmin(axis=1)
        cover_THW.reshape(t, -1)[np.arange(t), nearest] = True
        for kind, value in enumerate((track.glyph, track.colour, track.motion)):
            classes[kind][cover_THW] = KINDS[kind][1].index(value) + 1
    return classes


def offsets(scene: Scene, grid: tuple[int, int, int]) -> tuple[Floats, Floats]:
    """The offset from every cell to the first object's centre, ``[2, t, h, w]`` cells to the right and down, and the
    object's visibility, ``[t]`` in 0 to 1. The number of frames must be a multiple of t.
    """
    t, h, w = grid
    track = scene.objects[0]
    x_T, y_T = track.position_T2.reshape(t, -1, 2).mean(axis=1).T.astype(np.float32)
    right = np.broadcast_to(x_T[:, None, None] * w - 0.5 - np.arange(w)[None, None, :], grid)
    down = np.broadcast_to(y_T[:, None, None] * h - 0.5 - np.arange(h)[None, :, None], grid)
    seen_T = (track.visible_T * track.opacity_T).reshape(t, -1).mean(axis=1)
    return np.stack([right, down]).astype(np.float32), seen_T.astype(np.float32)


def object_mask(scene: Scene, height: int, width: int) -> NDArray[np.bool_]:
    """A mask ``[T, H, W]`` of the pixels on the objects and just around them, including outlines."""
    inside = [
        _distances(track.position_T2, height, width) < _MARGIN * track.size_T[:, None, None] for track in scene.objects
    ]
    return np.any(inside, axis=0)


def covered(scene: Scene, height: int, width: int) -> Floats:
    """The share of each cell covered by objects, ``[T, height, width]`` in 0 to 1, regardless of opacity.

    Cells must be at least one pixel of the clip; coverage at outlines is measured at the cell's centre.
    """
    short = min(height, width)
    cover = np.zeros((len(scene.objects[0].size_T), height, width), np.float32)
    for track in scene.objects:
        radius = np.maximum(0.5 * track.size_T * short, 0.25)[:, None, None]
        x = (np.arange(width) + 0.5 - track.position_T2[:, :1] * width)[:, None, :] / radius
        y = (np.arange(height) + 0.5 - track.position_T2[:, 1:] * height)[:, :, None] / radius
        cos, sin = np.cos(track.angle_T)[:, None, None], np.sin(track.angle_T)[:, None, None]
        u, v = (cos * x + sin * y).astype(np.float32), (cos * y - sin * x).astype(np.float32)
        np.maximum(cover, np.clip(0.5 - distance(track.glyph, u, v) * radius, 0, 1), out=cover)
    return cover


def poses(scene: Scene) -> Floats:
    """The first object's centre (x, y) and diameter as fractions, angle in radians and opacity, ``[T, 5]``."""
    track = scene.objects[0]
    return np.column_stack([track.position_T2, track.size_T, track.angle_T, track.opacity_T]).astype(np.float32)


def upright(glyph: str, side: int, reach: float) -> Floats:
    """Signed distance to a glyph's outline at a square of points over ±``reach`` radii, ``[side, side]``, in radii."""
    along = ((np.arange(side) + 0.5) * (2 * reach / side) - reach).astype(np.float32)
    x, y = np.meshgrid(along, along)
    return distance(glyph, x, y).astype(np.float32)


def turns(glyph: str) -> int:
    """The order of an outline's rotational symmetry; 0 for circular symmetry."""
    return _TURNS.get(glyph, 1)


def _distances(position_T2: Floats, height: int, width: int) -> Floats:
    """Distance of every cell's centre from a moving point ``[T, H, W]``, in fractions of the shorter side."""
    short = min(height, width)
    x = ((np.arange(width) + 0.5 - position_T2[:, :1] * width) / short).astype(np.float32)
    y = ((np.arange(height) + 0.5 - position_T2[:, 1:] * height) / short).astype(np.float32)
    return np.sqrt(np.square(y)[:, :, None] + np.square(x)[:, None, :])  # five times faster than np.hypot
