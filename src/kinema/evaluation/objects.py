"""Find objects in a clip without learned weights: foreground, components, colours.

The background palette is taken from the frame borders over the whole clip, which handles plain, gradient, patterned
and moving backgrounds; pixels far from every palette colour are foreground. Letters: C channels, T frames, H height,
W width; pixels are in [0, 1] here.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "cyan")
_HUES = {"red": 0.0, "orange": 28.0, "yellow": 54.0, "green": 131.0, "cyan": 186.0, "blue": 227.0, "purple": 278.0}
_LEVELS = 20
_FAR = 0.17
"""Minimum distance of foreground from every background colour, in the space of ``_opponent``."""


@dataclass(frozen=True)
class TrackedObject:
    """One object over the clip: mask, soft cover, contrast and colour.

    ``mask_THW`` is its component in each frame (empty if not visible), ``cover_THW`` a soft version in [0, 1],
    ``contrast_T`` the mean distance of its pixels from the background palette. ``pieces`` is the number of large
    separate components: more than one if there are several objects of its colour.
    """

    colour: str
    colour_T: tuple[str | None, ...]
    mask_THW: Mask
    cover_THW: Floats
    contrast_T: Floats
    pieces: int

    @property
    def area_T(self) -> Floats:  # noqa: N802 - shape suffix
        """Area of the object in each frame, in pixels."""
        return self.mask_THW.sum(axis=(1, 2)).astype(np.float32)


def find_objects(video_CTHW: Floats) -> list[TrackedObject]:
    """Find the clip's objects, largest first; two objects are distinguished by colour."""
    far_THW = distance_to_background(video_CTHW)
    found_THW = far_THW > _FAR
    labels_THW, areas = components(found_THW)
    keep = areas >= max(6, 0.002 * found_THW[0].size)
    found_THW &= keep[labels_THW]
    if not found_THW.any():
        return []
    names_THW = colour_classes(video_CTHW)
    strong_THW = np.where(found_THW, far_THW, 0)
    # Weight by contrast: rims and faded frames are mixtures with the background.
    weights = np.bincount(names_THW.ravel(), (strong_THW.astype(np.float64) ** 2).ravel(), len(COLOURS) + 1)[:-1]
    colours = _object_colours(names_THW, found_THW, weights.astype(np.float64))
    if len(colours) < 2:
        return [_track(colours[0], found_THW, far_THW, names_THW)]
    return [_track(index, found_THW & (names_THW == index), far_THW, names_THW) for index in colours[:3]]


def _object_colours(names_THW: NDArray[np.intp], found_THW: Mask, weights: NDArray[np.float64]) -> list[int]:
    """Colours of different objects, strongest first: large, strong and visible at the same time.

    Colours that only follow one another belong to one object that changes.
    """
    frames = [np.bincount(n[f], minlength=len(COLOURS) + 1)[:-1] for n, f in zip(names_THW, found_THW, strict=True)]
    areas_TK = np.array(frames)
    typical = np.quantile(areas_TK, 0.75, axis=0)
    visible_TK = areas_TK >= 0.25 * typical.max()
    main = int(np.argmax(weights))
    together = (visible_TK & visible_TK[:, main : main + 1]).sum(axis=0) >= 0.5 * np.maximum(visible_TK.sum(axis=0), 1)
    large = (typical >= 0.25 * typical.max()) & (weights > 0.15 * weights.max()) & together
    return [int(i) for i in np.argsort(-weights) if large[i] or i == main]


def _track(index: int, own_THW: Mask, far_THW: Floats, names_THW: NDArray[np.intp]) -> TrackedObject:
    mask_THW, pieces = largest_component(own_THW, far_THW)
    contrast = np.zeros(len(mask_THW), np.float32)
    cover_THW = np.zeros(mask_THW.shape, np.float32)
    names: list[str | None] = []
    rim_THW, reference_THW = dilate(mask_THW), _reference(far_THW, mask_THW)
    for t, mask in enumerate(mask_THW):
        if not mask.any():
            names.append(None)
            continue
        inside = far_THW[t][mask]
        contrast[t] = inside.mean()
        full = np.where(reference_THW[t] > 0, reference_THW[t], max(float(np.quantile(inside, 0.4)), _FAR))
        cover_THW[t] = np.where(rim_THW[t], np.clip(far_THW[t] / full, 0, 1), 0)
        votes = np.bincount(names_THW[t][mask], inside.astype(np.float64) ** 2, len(COLOURS) + 1)[:-1]
        names.append(COLOURS[int(np.argmax(votes))] if votes.any() else None)
    return TrackedObject(COLOURS[index], tuple(names), mask_THW, cover_THW, contrast, pieces)


def _reference(far_THW: Floats, mask_THW: Mask) -> Floats:
    """Contrast of full coverage at each pixel: its own inside the object, the mean of nearby inside pixels at the rim.

    Zero if no inside pixel is within two pixels, as in thin strokes.
    """
    inside = mask_THW & ~dilate(~mask_THW)
    sums = [
        boxes(values, 2, (1, 2)) for values in (np.where(inside, far_THW, np.float32(0)), inside.astype(np.float32))
    ]
    near = sums[0] / np.maximum(sums[1], 1)
    return np.where(inside, np.minimum(far_THW, near) * np.float32(0.98), near)


# ---------------------------------------------------------------------------------- background


def distance_to_background(video_CTHW: Floats) -> Floats:
    """Distance of each pixel ``[T, H, W]`` from the nearest background palette colour."""
    levels_CTHW = np.clip(video_CTHW * (_LEVELS - 1) + 0.5, 0, _LEVELS - 1).astype(np.int32)
    bins_THW = (levels_CTHW[0] * _LEVELS + levels_CTHW[1]) * _LEVELS + levels_CTHW[2]
    levels = np.stack(np.unravel_index(np.arange(_LEVELS**3), (_LEVELS,) * 3), 1)
    centres = (levels / (_LEVELS - 1)).astype(np.float32)
    chosen = _palette(bins_THW, centres)
    space = _opponent(centres)
    used = np.unique(bins_THW)
    table = np.zeros(_LEVELS**3, np.float32)
    table[used] = np.sqrt(((space[used, None] - space[chosen][None]) ** 2).sum(2).min(1))
    return table[bins_THW]


def _palette(bins_THW: NDArray[np.int32], centres: Floats) -> Mask:
    """Colour bins of the background: those common on the frame border, over all frames.

    Objects may touch the border, so bins that could be objects (vivid or light) must cover much of it; light patches,
    as in a pattern, also count if all frames have them.
    """
    sides = (bins_THW[:, :2], bins_THW[:, -2:], bins_THW[:, :, :2], bins_THW[:, :, -2:])
    rim = np.concatenate([side.reshape(len(bins_THW), -1) for side in sides], axis=1)
    shares = np.bincount(rim.ravel(), minlength=_LEVELS**3) / rim.size
    cube = shares.reshape((_LEVELS,) * 3)
    nearby, around = (boxes(cube, reach, (0, 1, 2)).ravel() for reach in (1, 2))
    vivid = centres.max(1) - centres.min(1) > 0.25
    light = ~vivid & (centres.min(1) > 0.66)
    light_T = light[rim].mean(axis=1)
    needed = np.where(vivid, 0.2, np.where(light, 0.04 if light_T.min() > 0.5 * light_T.mean() else 0.2, 0.0))
    chosen = (nearby > 0.006) & (shares > 0) & (around >= needed)
    return chosen if chosen.any() else shares >= np.sort(shares)[-3]


def _opponent(rgb_N3: Floats) -> Floats:
    """Transform colours to weaken grey differences and strengthen chroma differences.

    Backgrounds vary in brightness, and objects differ from them in hue.
    """
    grey = rgb_N3.mean(axis=1, keepdims=True)
    return np.float32(0.8) * grey + np.float32(1.7) * (rgb_N3 - grey)


def colour_classes(video_CTHW: Floats) -> NDArray[np.intp]:
    """Index in ``COLOURS`` of each pixel ``[T, H, W]``, or ``len(COLOURS)`` for grey and black."""
    red, green, blue = video_CTHW
    high, low = video_CTHW.max(axis=0), video_CTHW.min(axis=0)
    chroma = high - low
    safe = np.maximum(chroma, 1e-6)
    hue = (
        np.where(
            high == red,
            (green - blue) / safe % 6,
            np.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4),
        )
        * 60
    )
    names = np.array([COLOURS.index(name) for name in _HUES])
    wheel = np.array(list(_HUES.values()), np.float32)
    edges = (wheel + np.append(wheel[1:], 360)) / 2
    classes = np.append(names, names[0])[np.searchsorted(edges, hue)]
    classes[chroma < 0.2] = len(COLOURS)
    classes[(chroma < 0.2) & (low > 0.62)] = COLOURS.index("white")
    return classes


# ---------------------------------------------------------------------------------- components


def components(mask_THW: Mask) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """8-connected components of each frame: labels ``[T, H, W]`` (0 is none) and areas by label.

    Runs of pixels are joined to the runs they touch in the row above (union-find).
    """
    frames, height, width = mask_THW.shape
    padded = np.zeros((frames, height + 1, width + 2), np.int8)
    padded[:, 1:, 1:-1] = mask_THW
    steps = np.diff(padded.reshape(-1, width + 2), axis=1)
    rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    row_list, start_list, end_list = rows.tolist(), starts.tolist(), ends.tolist()
    above = 0
    for run, row in enumerate(row_list):
        while row_list[above] < row - 1:
            above += 1
        other = above
        while other < run and row_list[other] == row - 1:
            if start_list[other] <= end_list[run] and end_list[other] >= start_list[run]:
                parent[root(other)] = root(run)
            other += 1
    roots = np.array([root(run) for run in range(len(rows))], np.intp)
    _, index = np.unique(roots, return_inverse=True)
    lengths = ends - starts
    areas = np.bincount(index + 1, lengths, minlength=1).astype(np.int64) if len(rows) else np.zeros(1, np.int64)
    labels = np.zeros(padded.shape, np.intp).reshape(-1, width + 2)
    flat = labels.ravel()
    places = np.repeat(rows * (width + 2) + starts + 1 - np.append(0, np.cumsum(lengths)[:-1]), lengths)
    flat[places + np.arange(lengths.sum())] = np.repeat(index + 1, lengths)
    return flat.reshape(padded.shape)[:, 1:, 1:-1], areas


def largest_component(mask_THW: Mask, weight_THW: Floats) -> tuple[Mask, int]:
    """The heaviest component of each frame, and the median number of components that rival it.

    Only frames in which the object has a high weight count for that number.
    """
    labels_THW, _ = components(mask_THW)
    weights = np.bincount(labels_THW.ravel(), weight_THW.ravel().astype(np.float64))
    weights[0] = 0
    found, best_T, count_T = [], np.zeros(len(mask_THW)), np.zeros(len(mask_THW))
    for t, labels in enumerate(labels_THW):
        present = np.unique(labels)
        label = present[np.argmax(weights[present])]
        best_T[t] = weights[label]
        count_T[t] = (weights[present] > 0.4 * best_T[t]).sum()
        found.append((labels == label) & (label > 0))
    clear = best_T >= 0.4 * best_T.max()
    return np.stack(found), int(np.median(count_T[clear])) if best_T.any() else 0


def dilate(mask_THW: Mask) -> Mask:
    """The mask extended by its eight-neighbourhood."""
    padded = np.pad(mask_THW, ((0, 0), (1, 1), (1, 1)))
    height, width = mask_THW.shape[1:]
    shifted = [padded[:, y : y + height, x : x + width] for y, x in itertools.product(range(3), repeat=2)]
    return np.logical_or.reduce(shifted)


def boxes(values: NDArray[np.floating], reach: int, axes: tuple[int, ...]) -> Floats:
    """Box sums within ``reach`` along these axes; zero-padded."""
    wide = values.astype(np.float64)
    for axis in axes:
        ends = [(reach + 1, reach) if a == axis else (0, 0) for a in range(wide.ndim)]
        sums = np.cumsum(np.pad(wide, ends), axis=axis)
        count, span = wide.shape[axis], 2 * reach + 1
        wide = np.take(sums, range(span, span + count), axis) - np.take(sums, range(count), axis)
    return wide.astype(np.float32)
