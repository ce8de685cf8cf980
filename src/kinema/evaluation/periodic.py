"""How closely an object follows the periodic motion of its prompt: an orbit, a swing or bounces, over the whole clip.

The prompt leaves place, phase, period and size of the motion open, so the error is the distance to the nearest path
that playroom draws for these words (`kinema.data.playroom.scene`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kinema.data.playroom import parse
from kinema.evaluation.objects import find_objects
from kinema.evaluation.outline import centroids_and_radii
from kinema.schema import BadRequest
from kinema.values import quoted

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float64]
MISSING = 0.25
"""Distance of a frame without the object, in shorter sides."""
TAU = 2 * np.pi
PERIODS = {"orbits": (1.6, 2.3), "swings": (1.2, 1.7), "bounces": (0.75, 1.1)}
"""Seconds of one period."""
SIZES = {"orbits": (0.22, 0.36), "swings": (0.35, 0.6), "bounces": (0.25, 0.48)}
"""Radius, arm and height, in shorter sides."""
REACHES = np.linspace(0.35, 0.9, 12)
"""Largest angle of a swing, in radians."""


def trajectory_error(video_CTHW: Tensor, prompt: str, fps: float) -> float:
    """Root-mean-square distance of the object's centre from the nearest path of the prompt's motion, in shorter sides.

    ``video`` is 3×T×H×W in [-1, 1]. Raises BadRequest for a prompt of another motion.
    """
    meaning = parse(prompt)
    if meaning is None or meaning.motion not in PERIODS:
        raise BadRequest(f"prompt {quoted(prompt)} names no periodic motion; expected {', '.join(PERIODS)}")
    pixels = ((video_CTHW.detach().float().cpu() + 1) / 2).clamp(0, 1).numpy()
    frames, height, width = pixels.shape[1:]
    tracks = find_objects(pixels)
    track = next((each for each in tracks if each.colour == meaning.colour), tracks[0] if tracks else None)
    centres = np.full((frames, 2), np.nan)
    if track is not None:
        centres[:] = centroids_and_radii(track.cover_THW)[0]
    found = np.isfinite(centres[:, 0])
    if found.sum() < 3:
        return MISSING
    rate = {"fast": 1.5, "slowly": 0.6}.get(meaning.speed or "", 1.0)
    seconds = np.flatnonzero(found) / fps * rate
    distance = distance_to_path(meaning.motion, seconds, centres[found] / min(height, width))
    return float(np.sqrt((distance**2 * found.sum() + MISSING**2 * (~found).sum()) / frames))


def distance_to_path(motion: str, seconds_N: Floats, place_N2: Floats) -> float:
    """Root-mean-square distance of places to the nearest path, searched on a grid that is then refined."""
    low, high = PERIODS[motion]
    periods, phases = np.linspace(low, high, 25), np.arange(48) / 48
    best = np.inf
    for _ in range(3):
        errors = _errors(motion, seconds_N, place_N2, periods, phases)
        best = min(best, float(errors.min()))
        period, phase = (int(i) for i in np.unravel_index(np.argmin(errors), errors.shape))
        wide, turn = periods[1] - periods[0], phases[1] - phases[0]
        periods = np.clip(periods[period] + np.linspace(-wide, wide, 9), low, high)
        phases = phases[phase] + np.linspace(-turn, turn, 9)
    return best


def _errors(motion: str, seconds_N: Floats, place_N2: Floats, periods: Floats, phases: Floats) -> Floats:
    """The distance for each period and phase, at the best place, size and form."""
    angle_PFN = TAU * (seconds_N / periods[:, None, None] + phases[:, None])
    shapes = [shape(angle_PFN) for shape in _SHAPES[motion]]
    place_N2 = place_N2.copy()
    if motion == "bounces":  # they drift to one side, at a steady speed that is not judged
        place_N2[:, 0] -= np.polyval(np.polyfit(seconds_N, place_N2[:, 0], 1), seconds_N)
    centred = place_N2 - place_N2.mean(0)
    errors = []
    for shape_PFN2 in shapes:
        path = shape_PFN2 - shape_PFN2.mean(2, keepdims=True)
        size = (path * centred).sum((2, 3)) / np.maximum((path * path).sum((2, 3)), 1e-9)
        off = centred - np.clip(size, *SIZES[motion])[:, :, None, None] * path
        errors.append(np.sqrt((off**2).sum(3).mean(2)))
    return np.min(errors, axis=0)


def _around(turn: int) -> Callable[[Floats], Floats]:
    return lambda angle: np.stack([np.cos(turn * angle), np.sin(turn * angle)], -1)


def _to_and_fro(reach: float) -> Callable[[Floats], Floats]:
    return lambda angle: np.stack([-np.sin(reach * np.sin(angle)), np.cos(reach * np.sin(angle)) - 1], -1)


def _up_and_down(angle: Floats) -> Floats:
    phase = angle / TAU % 1
    return np.stack([np.zeros_like(phase), -4 * phase * (1 - phase)], -1)


_SHAPES: dict[str, Sequence[Callable[[Floats], Floats]]] = {
    "orbits": [_around(1), _around(-1)],
    "swings": [_to_and_fro(reach) for reach in REACHES],
    "bounces": [_up_and_down],
}
"""Paths of size 1 by angle, …→…×2; y points down."""
