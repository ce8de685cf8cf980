"""Rendering of scenes: each object is evaluated for all frames in one pass, in its bounding box.

Letters: C channels, T frames, H height, W width, N the side of an object's box in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from kinema.data.playroom.backdrop import paint
from kinema.data.playroom.shapes import EXTENT, MARKS, distance, mark

if TYPE_CHECKING:
    from kinema.data.playroom.backdrop import Backdrop
    from kinema.data.playroom.scene import Camera, Track, View
    from kinema.data.playroom.shapes import Floats


@dataclass(frozen=True)
class Surface:
    """An object's surface: the kind and colour of its mark."""

    mark: str
    tone: tuple[float, float, float]


def random_surface(track: Track, rng: np.random.Generator) -> Surface:
    """A random mark in a lighter or darker tone of the object's colour."""
    u = rng.random(2)
    kinds = ("band", "quarters", "wedge", "stripes") if track.shape == "ring" else MARKS
    if track.letter:
        kinds = ("wedge", "half")
    lighter = u[1] < 0.45 and track.colour not in ("white", "yellow", "cyan")
    # Letters have thin strokes and white can only turn grey, so their second tone is closer.
    dark, light = (0.78, 0.3) if track.letter or track.colour == "white" else (0.68, 0.42)
    red, green, blue = (c + light * (1 - c) if lighter else dark * c for c in track.rgb)
    return Surface(kinds[int(u[0] * len(kinds))], (red, green, blue))


@dataclass(frozen=True)
class _Layer:
    """An object in its moving box: opacity ``[T, N, N]``, colour ``[3, T, N, N]``, corners ``[T]``."""

    cover: Floats
    colour: Floats
    left: list[int]
    top: list[int]


def render(
    tracks: list[Track], surfaces: list[Surface], backdrop: Backdrop, camera: Camera, view: View, order: list[int]
) -> tuple[Floats, list[Track]]:
    """Render the video ``[3, T, H, W]`` in [-1, 1]; also returns the tracks with their visible shares.

    ``order`` lists the objects from back to front.
    """
    ground = paint(backdrop, view, camera)
    video = np.empty((3, view.frames, view.height, view.width), np.float32)
    np.multiply(ground, np.float32(2), out=video)
    video -= np.float32(1)
    layers = [_layer(track, surface, view) for track, surface in zip(tracks, surfaces, strict=True)]
    shares = [np.ones(view.frames, np.float32) for _ in tracks]
    hidden: Floats | None = np.zeros((view.frames, view.height, view.width), np.float32) if len(tracks) > 1 else None
    for index in reversed(order):
        shares[index] = _visible(layers[index], hidden, view)
    for index in order:
        _compose(video, layers[index], tracks[index].opacity_T, view)
    return video, [replace(track, visible_T=share) for track, share in zip(tracks, shares, strict=True)]


def _layer(track: Track, surface: Surface, view: View) -> _Layer:
    radius = np.maximum(track.size_T * np.float32(0.5 * view.short), np.float32(0.25))
    side = int(2 * EXTENT * float(radius.max())) + 4
    x, y = track.position_T2[:, 0] * view.width, track.position_T2[:, 1] * view.height
    left, top = np.floor(x - side / 2).astype(int), np.floor(y - side / 2).astype(int)
    steps = np.arange(side, dtype=np.float32) + np.float32(0.5)
    dx = (steps + (left - x)[:, None].astype(np.float32)) / radius[:, None]
    dy = (steps + (top - y)[:, None].astype(np.float32)) / radius[:, None]
    cos, sin = np.cos(track.angle_T)[:, None], np.sin(track.angle_T)[:, None]
    u = (cos * dx)[:, None, :] + (sin * dy)[:, :, None]
    v = (-sin * dx)[:, None, :] + (cos * dy)[:, :, None]
    cover = distance(track.glyph, u, v)
    cover *= -radius[:, None, None]
    cover += np.float32(0.5)
    np.clip(cover, 0, 1, out=cover)
    tone = mark(surface.mark, u, v, float(radius.mean()))
    base = np.array(track.rgb, np.float32) * 2 - 1
    step = np.array(surface.tone, np.float32) * 2 - 1 - base
    colour = tone[None] * step[:, None, None, None]
    colour += base[:, None, None, None]
    return _Layer(cover, colour, left.tolist(), top.tolist())


def _windows(layer: _Layer, view: View) -> list[tuple[int, slice, slice, slice, slice]]:
    """For each frame that the box overlaps: t, then the rows and columns in the frame and in the box."""
    side, found = layer.cover.shape[-1], []
    for t, (left, top) in enumerate(zip(layer.left, layer.top, strict=True)):
        x0, x1, y0, y1 = max(left, 0), min(left + side, view.width), max(top, 0), min(top + side, view.height)
        if x0 < x1 and y0 < y1:
            found.append((t, slice(y0, y1), slice(x0, x1), slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)))
    return found


def _compose(video: Floats, layer: _Layer, opacity_T: Floats, view: View) -> None:
    cover = layer.cover if opacity_T.min() == 1 else layer.cover * opacity_T[:, None, None]
    for t, rows, columns, box_rows, box_columns in _windows(layer, view):
        part = video[:, t, rows, columns]
        part += cover[t, box_rows, box_columns] * (layer.colour[:, t, box_rows, box_columns] - part)


def _visible(layer: _Layer, hidden: Floats | None, view: View) -> Floats:
    """The share of the outline that is in the frame and not under ``hidden``; adds the layer to ``hidden``."""
    area = layer.cover.sum(axis=(1, 2))
    side = layer.cover.shape[-1]
    inside = all(0 <= x <= view.width - side for x in layer.left) and all(
        0 <= y <= view.height - side for y in layer.top
    )
    if hidden is None and inside:
        return np.ones_like(area)
    visible = np.zeros_like(area)
    for t, rows, columns, box_rows, box_columns in _windows(layer, view):
        cover = layer.cover[t, box_rows, box_columns]
        if hidden is None:
            visible[t] = cover.sum()
            continue
        above = hidden[t, rows, columns]
        visible[t] = (cover * (1 - above)).sum()
        np.maximum(above, cover, out=above)
    return visible / np.maximum(area, np.float32(1e-6))
