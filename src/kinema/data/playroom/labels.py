"""The scene graph on a grid: what stands at each place of a clip, as class numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kinema.data.playroom.grammar import COLOURS, LETTERS, MOTIONS, SHAPES

if TYPE_CHECKING:
    from kinema.data.playroom.scene import Scene

GLYPHS = (*SHAPES[:-1], *LETTERS)
KINDS = (("glyph", GLYPHS), ("colour", COLOURS), ("motion", (*MOTIONS, "still")))
"""What is said of a place, and the values it can take; class 0 is "nothing here", so value i is class i + 1."""
CLASSES = tuple(len(values) + 1 for _, values in KINDS)
_REACH = 0.4
"""Of the diameter: an outline fills most of its disc within this radius."""


def on_grid(scene: Scene, grid: tuple[int, int, int]) -> NDArray[np.int64]:
    """Classes ``[3, t, h, w]`` (glyph, colour, motion) of what covers each cell for half its frames or more.

    The clip's frames must be a multiple of t. An object has a cell however small it is. Of two objects at
    one cell the later one of the scene counts, which is the one in front.
    """
    t, h, w = grid
    x, y = (np.arange(w) + 0.5) / w, (np.arange(h) + 0.5) / h
    classes = np.zeros((3, t, h, w), np.int64)
    for track in scene.objects:
        at_TM2 = track.position_T2.reshape(t, -1, 2)
        reach_TM = _REACH * track.size_T.reshape(t, -1)
        near = np.square(x - at_TM2[..., None, None, 0]) + np.square(y[:, None] - at_TM2[..., None, None, 1])
        cover_THW = (near < np.square(reach_TM)[..., None, None]).mean(axis=1) >= 0.5
        nearest = near.mean(axis=1).reshape(t, -1).argmin(axis=1)
        cover_THW.reshape(t, -1)[np.arange(t), nearest] = True
        for kind, value in enumerate((track.glyph, track.colour, track.motion)):
            classes[kind][cover_THW] = KINDS[kind][1].index(value) + 1
    return classes
