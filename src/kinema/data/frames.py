"""Frames of a clip on disk one by one, for training, measuring and cutting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from kinema.media.containers import existing
from kinema.media.read import timed_frames
from kinema.media.timing import Limits, Part, Timed, even_rate, resampled, within

LONGEST = 2048
"""Frames of a clip that are read; the rest of a longer one is left out, and said so."""
_LIMITS = Limits(frames=2**20, pixels=2**40, seconds=float("inf"))
"""Frames are counted by whoever takes them."""


def read_frames(path: Path, fps: float | None, rates: list[float] | None = None) -> Iterator[np.ndarray]:
    """Frames of a clip one by one, uint8 H×W×3, at ``fps`` or as they are filed: a long one never lies in memory whole.

    ``rates``, where it is given, gets the rate as soon as it is known: at the latest with the last frame, or after
    `LONGEST`. Raises BadRequest for what is no clip, or is damaged.
    """
    path, told = existing(path), [] if rates is None else rates
    own, timed = timed_frames(path, _LIMITS, Part(fps=fps))
    shown = within(path.name, timed, None, _LIMITS)
    if fps or own:
        told.append(fps or own or 0.0)
    times: list[Timed] = []
    for frame in resampled(shown, fps, None) if fps else shown:
        if not told:
            times.append(replace(frame, pixels=_no_pixels))
            if len(times) == LONGEST:
                told.append(even_rate(times)[1])
        yield frame.pixels()
    if not told:
        told.append(even_rate(times)[1])


def _no_pixels() -> np.ndarray:
    raise RuntimeError("the pixels of this frame were let go")
