"""Streaming frames of a clip file, for training, motion scores and shot detection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from kinema.media.containers import readable_path
from kinema.media.read import timed_frames
from kinema.media.timing import Limits, Part, TimedFrame, even_rate, frames_from, resampled

LONGEST = 2048
"""Frames read of a clip; the rest of a longer one is ignored, which is reported."""
_LIMITS = Limits(frames=2**20, pixels=2**40, seconds=float("inf"))
"""The caller limits the number of frames."""


def read_frames(path: Path, fps: float | None, rates: list[float] | None = None) -> Iterator[np.ndarray]:
    """Yield the frames of a clip, uint8 H×W×3, at ``fps`` or the file's own rate, without holding the whole clip.

    The frame rate is appended to ``rates`` once it is known: at the latest with the last frame, or after `LONGEST`
    frames. Raises BadRequest if the file is damaged or not a clip.
    """
    path, rates = readable_path(path), [] if rates is None else rates
    own, timed = timed_frames(path, _LIMITS, Part(fps=fps))
    frames = frames_from(path.name, timed, None, _LIMITS)
    if fps or own:
        rates.append(fps or own or 0.0)
    times: list[TimedFrame] = []
    for frame in resampled(frames, fps, None) if fps else frames:
        if not rates:
            times.append(replace(frame, pixels=_no_pixels))
            if len(times) == LONGEST:
                rates.append(even_rate(times)[1])
        yield frame.pixels()
    if not rates:
        rates.append(even_rate(times)[1])


def _no_pixels() -> np.ndarray:
    raise RuntimeError("the pixels of this frame were released")
