"""Classify a motion from an object's path: position, size, contrast and surface over the frames."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from kinema.evaluation.objects import TrackedObject
    from kinema.evaluation.outline import Floats

_ANGLES = np.deg2rad(np.arange(-78, 79, 6)).astype(np.float32)
_GAIN = 0.12
"""A rotation must explain at least this much more of the change between two frames than no rotation."""
_RIM = 0.2
"""Weight of the outline relative to the surface marks when measuring rotation."""
_TURNS = 0.04
"""Objects that turn at least this much (radians per two frames, on average) roll or spin."""
_NEEDED = 3
"""Paths of fewer frames have no motion."""


@dataclass(frozen=True)
class Path:
    """An object's path through the frames in which it is visible (N of T).

    ``time_N`` is the share of the clip elapsed, ``place_N2`` x and y as fractions of width and height, ``radius_N`` in
    shorter sides, ``contrast_N`` relative to its maximum, ``turning`` in radians per two frames, ``missing_end`` the
    share of the clip's last third in which it is not visible, and ``square`` the sides in units of the shorter one.
    """

    time_N: Floats
    place_N2: Floats
    radius_N: Floats
    contrast_N: Floats
    turning: float
    missing_end: float
    square: tuple[float, float]

    @classmethod
    def of(
        cls,
        centres: Floats,
        radius: Floats,
        tracked: TrackedObject,
        patches: Floats,
        covers: Floats,
        size: tuple[int, int],
    ) -> Path:
        """Build an object's path; ``patches`` and ``covers`` are its pixels and mask on the normalised grid."""
        height, width = size
        frames, short = len(centres), min(size)
        visible = np.isfinite(centres[:, 0])
        contrast = tracked.contrast_T / max(float(tracked.contrast_T.max()), 1e-6)
        last = visible[-max(1, frames // 3) :]
        return cls(
            time_N=(np.arange(frames)[visible] / max(frames, 1)).astype(np.float32),
            place_N2=(centres[visible] / np.array([width, height])).astype(np.float32),
            radius_N=(radius[visible] / short).astype(np.float32),
            contrast_N=contrast[visible],
            turning=_turning(patches, covers, visible, contrast),
            missing_end=float(1 - last.mean()),
            square=(width / short, height / short),
        )


@lru_cache(maxsize=2)
def _rotations(side: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Flat indices of the disc in a normalised grid ``[D]``, and of its points rotated ``[R, D]``."""
    line = np.arange(side) - (side - 1) / 2
    x, y = np.meshgrid(line, line)
    disc = np.flatnonzero(x * x + y * y < (0.42 * side) ** 2)
    x, y = x.ravel()[disc], y.ravel()[disc]
    cos, sin = np.cos(_ANGLES)[:, None], np.sin(_ANGLES)[:, None]
    columns = np.rint(cos * x + sin * y + (side - 1) / 2).astype(np.intp)
    rows = np.rint(cos * y - sin * x + (side - 1) / 2).astype(np.intp)
    return disc, rows * side + columns


def _turning(patches: Floats, covers: Floats, visible: NDArray[np.bool_], contrast: Floats) -> float:
    """Mean rotation in radians between frames two apart, by the best-fitting rotation.

    A pair counts as not turned unless a rotation explains its change clearly better than none.
    """
    good = np.flatnonzero(visible & (contrast > 0.5))
    good = good[np.isin(good + 2, good)]
    if not len(good):
        return 0.0
    # Subtract the object's own mean, so that marks count and a round rim hardly does.
    total = np.maximum(covers.sum(axis=(1, 2)), np.float32(1e-6))
    means = (patches * covers).sum(axis=(2, 3)) / total
    surface = np.concatenate([(patches - means[:, :, None, None]) * covers, np.float32(_RIM) * covers[None]])
    surface = surface.reshape(len(surface), len(visible), -1)
    disc, rotated = _rotations(patches.shape[-1])
    before, after = surface[:, good], surface[:, good + 2][:, :, disc]
    errors_RN = np.stack([((before[:, :, turned] - after) ** 2).sum(axis=(0, 2)) for turned in rotated])
    still = errors_RN[len(_ANGLES) // 2]
    gain = 1 - errors_RN.min(axis=0) / np.maximum(still, 1e-6)
    turned = np.where(gain > _GAIN, np.abs(_ANGLES[np.argmin(errors_RN, axis=0)]), 0)
    return float(turned.mean())


def _slope(path: Path, axis: int) -> tuple[float, float]:
    """Displacement over the clip by least squares, and the share of variance that the line explains."""
    t, p = path.time_N, path.place_N2[:, axis]
    t, p = t - t.mean(), p - p.mean()
    variance = float((p * p).sum())
    slope = float((t * p).sum() / max(float((t * t).sum()), 1e-9))
    return slope, slope * slope * float((t * t).sum()) / max(variance, 1e-9)


def direction_of_path(path: Path, least: float = 0.12) -> str | None:
    """Left, right, up or down by the stronger slope of the path; None if it is too short or not a line."""
    if len(path.time_N) < _NEEDED:
        return None
    (dx, straight_x), (dy, straight_y) = _slope(path, 0), _slope(path, 1)
    across = abs(dx) * path.square[0] >= abs(dy) * path.square[1]
    shift, straight = (dx, straight_x) if across else (dy, straight_y)
    if abs(shift) < least or straight < 0.6:
        return None
    return ("right" if shift > 0 else "left") if across else ("down" if shift > 0 else "up")


def motion_of_path(path: Path) -> str:
    """Classify the motion in playroom words ("rolls right", "spins"), or "still"."""
    if len(path.time_N) < _NEEDED:
        return "still"
    edge = max(1, len(path.time_N) // 5)
    faded = float(path.contrast_N[-edge:].mean() / max(float(path.contrast_N[:edge].mean()), 1e-6))
    strong = path.place_N2[path.contrast_N > 0.4]
    across, down = (float(np.ptp(strong[:, axis])) * path.square[axis] for axis in (0, 1))
    if (faded < 0.6 or (faded < 0.8 and path.missing_end > 0.5)) and max(across, down) < 0.25:
        return "fades"
    growth = float(path.radius_N[-edge:].mean() / path.radius_N[:edge].mean())
    if max(growth, 1 / growth) > 1.35 and max(across, down) < 0.25:
        return "grows" if growth > 1 else "shrinks"
    direction = direction_of_path(path)
    if direction and _straight(path, direction):
        return f"{_verb(path, direction)} {direction}"
    if max(across, down) > 0.2:
        return _curved(path, across, down)
    return "spins" if path.turning > _TURNS else "still"


def _straight(path: Path, direction: str) -> bool:
    """Whether the path hardly reverses and stays close to a line."""
    axis = 0 if direction in ("left", "right") else 1
    along, aside = path.place_N2[:, axis] * path.square[axis], path.place_N2[:, 1 - axis] * path.square[1 - axis]
    steps = np.diff(along) * (1 if direction in ("right", "down") else -1)
    back = float(-steps[steps < 0].sum())
    return back < 0.15 * float(np.ptp(along)) and float(np.ptp(aside)) < 0.35 * float(np.ptp(along))


def _verb(path: Path, direction: str) -> str:
    """Rolling objects turn, sliding ones slow down, moving ones do neither."""
    if path.turning > _TURNS:
        return "rolls"
    axis = 0 if direction in ("left", "right") else 1
    t, p = path.time_N, path.place_N2[:, axis]
    bend, slope, _ = np.polyfit(t - t.mean(), p, 2)
    # Ratio of final to initial speed: 1 if constant, near 0 for a slide.
    reach = float(t[-1] - t.mean())
    start, end = slope - 2 * bend * reach, slope + 2 * bend * reach
    return "slides" if abs(end) < 0.55 * abs(start) else "moves"


def _curved(path: Path, across: float, down: float) -> str:
    """Bounces are vertical, swings go back and forth on an arc, orbits go round."""
    x, y = path.place_N2[:, 0] * path.square[0], path.place_N2[:, 1] * path.square[1]
    if across < 0.45 * down:
        return "bounces"
    # A swing's height is a function of its x position: a parabola with its lowest point in the middle.
    design = np.stack([np.ones_like(x), x - x.mean(), (x - x.mean()) ** 2], 1)
    fit, *_ = np.linalg.lstsq(design, y, rcond=None)
    residual = float(np.std(y - design @ fit))
    return "swings" if residual < 0.03 and fit[2] < 0 else "orbits"
