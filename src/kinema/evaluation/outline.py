"""Classify an outline: normalised masks against templates of every shape and letter in all rotations.

A mask is centred on its centroid, scaled by its root-mean-square radius and sampled on a grid, which removes position
and size; its similarity is the cosine with each mean-free template.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kinema.data.playroom.shapes import distance

Floats = NDArray[np.float32]

SHAPES = ("ball", "box", "triangle", "star", "ring", "heart")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
GLYPHS = (*SHAPES, *LETTERS)
GRID = 26
_REACH = 2.2
"""Half-width of the grid in root-mean-square radii."""
TURNS = 48
_SOFT = 0.16


@lru_cache(maxsize=2)
def _grid(side: int = GRID) -> tuple[Floats, Floats]:
    line = np.linspace(-_REACH, _REACH, side, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    return x, y


@lru_cache(maxsize=1)
def templates() -> Floats:
    """Unit vectors ``[glyphs, turns, grid²]``; turn k is rotated clockwise by k/48 of a circle."""
    fine = np.linspace(-1.6, 1.6, 129, dtype=np.float32)
    u, v = np.meshgrid(fine, fine)
    x, y = _grid()
    rows = []
    for glyph in GLYPHS:
        inside = np.clip(0.5 - distance(glyph, u, v) * 20, 0, 1)
        cx, cy = (inside * u).sum() / inside.sum(), (inside * v).sum() / inside.sum()
        radius = np.sqrt((inside * ((u - cx) ** 2 + (v - cy) ** 2)).sum() / inside.sum())
        angles = (np.arange(TURNS) * 2 * np.pi / TURNS).astype(np.float32)[:, None, None]
        px = (np.cos(angles) * x + np.sin(angles) * y) * radius + cx
        py = (-np.sin(angles) * x + np.cos(angles) * y) * radius + cy
        rows.append(np.clip(0.5 - distance(glyph, px, py) / _SOFT, 0, 1).reshape(TURNS, -1))
    return unit(np.stack(rows))


def unit(vectors: Floats) -> Floats:
    """Mean-free vectors of unit length along the last axis (zero stays zero)."""
    free = vectors - vectors.mean(axis=-1, keepdims=True)
    return free / np.maximum(np.linalg.norm(free, axis=-1, keepdims=True), np.float32(1e-6))


def centroids_and_radii(cover_THW: Floats) -> tuple[Floats, Floats]:
    """Centroids ``[T, 2]`` (x, y in pixels) and root-mean-square radii ``[T]`` of soft masks.

    Both are NaN where the mask is empty.
    """
    height, width = cover_THW.shape[1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        total = cover_THW.sum(axis=(1, 2))
        x, y = np.arange(width, dtype=np.float32) + 0.5, np.arange(height, dtype=np.float32) + 0.5
        columns, rows = cover_THW.sum(axis=1), cover_THW.sum(axis=2)
        cx, cy = (columns @ x) / total, (rows @ y) / total
        square = (columns @ (x * x) + rows @ (y * y)) / total - cx * cx - cy * cy
    return np.stack([cx, cy], 1), np.sqrt(np.maximum(square, 0.25))


def crops(image_KTHW: Floats, centres_T2: Floats, radius_T: Floats) -> Floats:
    """Sample each frame on the normalised grid ``[K, T, grid, grid]``, bilinear; edges are replicated."""
    height, width = image_KTHW.shape[2:]
    x, y = _grid()
    px = np.clip(centres_T2[:, 0, None, None] + x * radius_T[:, None, None] - 0.5, 0, width - 1.001)
    py = np.clip(centres_T2[:, 1, None, None] + y * radius_T[:, None, None] - 0.5, 0, height - 1.001)
    left, top = np.floor(px).astype(np.intp), np.floor(py).astype(np.intp)
    fx, fy = (px - left).astype(np.float32), (py - top).astype(np.float32)
    corner = (np.arange(len(left))[:, None, None] * height + top) * width + left
    flat = image_KTHW.reshape(len(image_KTHW), -1)
    high = flat[:, corner] * (1 - fx) + flat[:, corner + 1] * fx
    low = flat[:, corner + width] * (1 - fx) + flat[:, corner + width + 1] * fx
    return high + (low - high) * fy


def similarity(crops_TGG: Floats) -> Floats:
    """Cosine similarities ``[T, glyphs, turns]`` of normalised masks with every template."""
    vectors = unit(crops_TGG.reshape(len(crops_TGG), -1))
    every = templates()
    return (vectors @ every.reshape(-1, every.shape[-1]).T).reshape(len(vectors), len(GLYPHS), TURNS)
