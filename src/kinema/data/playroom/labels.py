"""The scene graph on a grid: what stands at each place of a clip, as class numbers, and which pixels are about it."""

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
"""What is said of a place, and the values it can take; class 0 is "nothing here", so value i is class i + 1."""
CLASSES = tuple(len(values) + 1 for _, values in KINDS)
_REACH = 0.4
"""Of the diameter: an outline fills most of its disc within this radius."""
_MARGIN = 0.7
"""Of the diameter: every outline lies within this radius (a square's corners at 0.5·√2)."""
_TURNS = {"ball": 0, "ring": 0, "box": 4, "triangle": 3, "star": 5}
"""Outlines that a turn of less than a circle leaves alike. No letter: its middle is not where it turns."""


def on_grid(scene: Scene, grid: tuple[int, int, int]) -> NDArray[np.int64]:
    """Classes ``[3, t, h, w]`` (glyph, colour, motion) of what covers each cell for half its frames or more.

    The clip's frames must be a multiple of t. An object has a cell however small it is. Of two objects at
    one cell the later one of the scene counts, which is the one in front.
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


def away(scene: Scene, grid: tuple[int, int, int]) -> tuple[Floats, Floats]:
    """How far off the first object's centre is from every cell, ``[2, t, h, w]`` cells to the right and downwards, and
    how much of it is seen, ``[t]`` in 0 to 1. The clip's frames must be a multiple of t.
    """
    t, h, w = grid
    track = scene.objects[0]
    x_T, y_T = track.position_T2.reshape(t, -1, 2).mean(axis=1).T.astype(np.float32)
    right = np.broadcast_to(x_T[:, None, None] * w - 0.5 - np.arange(w)[None, None, :], grid)
    down = np.broadcast_to(y_T[:, None, None] * h - 0.5 - np.arange(h)[None, :, None], grid)
    seen_T = (track.visible_T * track.opacity_T).reshape(t, -1).mean(axis=1)
    return np.stack([right, down]).astype(np.float32), seen_T.astype(np.float32)


def around(scene: Scene, height: int, width: int) -> NDArray[np.bool_]:
    """The pixels ``[T, H, W]`` on the scene's objects and just around them, where outlines are decided."""
    inside = [
        _distances(track.position_T2, height, width) < _MARGIN * track.size_T[:, None, None] for track in scene.objects
    ]
    return np.any(inside, axis=0)


def covered(scene: Scene, height: int, width: int) -> Floats:
    """The share of each cell that the scene's objects cover, ``[T, height, width]`` in 0 to 1, however opaque they are.

    Cells are at least a pixel of the clip; one that an outline crosses is measured at its middle.
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
    """The first object's centre, diameter, angle and opacity, ``[T, 5]``: fractions, radians, and a share."""
    track = scene.objects[0]
    return np.column_stack([track.position_T2, track.size_T, track.angle_T, track.opacity_T]).astype(np.float32)


def upright(glyph: str, side: int, reach: float) -> Floats:
    """Signed distance to a glyph's outline at a square of points over ±``reach`` radii, ``[side, side]``, in radii."""
    along = ((np.arange(side) + 0.5) * (2 * reach / side) - reach).astype(np.float32)
    x, y = np.meshgrid(along, along)
    return distance(glyph, x, y).astype(np.float32)


def turns(glyph: str) -> int:
    """By how many turns of a circle an outline falls on itself; 0 where every turn does."""
    return _TURNS.get(glyph, 1)


def _distances(position_T2: Floats, height: int, width: int) -> Floats:
    """Distance of every cell's centre from a moving point ``[T, H, W]``, in fractions of the shorter side."""
    short = min(height, width)
    x = ((np.arange(width) + 0.5 - position_T2[:, :1] * width) / short).astype(np.float32)
    y = ((np.arange(height) + 0.5 - position_T2[:, 1:] * height) / short).astype(np.float32)
    return np.sqrt(np.square(y)[:, :, None] + np.square(x)[:, None, :])  # a fifth of the time of np.hypot
