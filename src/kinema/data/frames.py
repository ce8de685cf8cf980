"""Streaming frames of a clip file, for training, motion scores and shot detection."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from kinema.data.listing import IMAGES
from kinema.media.containers import readable_path, sniff
from kinema.media.images import is_image, read_image
from kinema.media.read import STREAMED, timed_frames
from kinema.media.streams import survey
from kinema.media.timing import Limits, Part, TimedFrame, even_rate, frames_from, resampled

LONGEST = 2048
"""Frames read of a clip; the rest of a longer one is ignored, which is reported."""
_LIMITS = Limits(frames=2**20, pixels=2**40, seconds=float("inf"))
"""The caller limits the number of frames."""


def read_frames(path: Path, fps: float | None, rates: list[float] | None = None) -> Iterator[np.ndarray]:
    """Yield the frames of a clip, uint8 H×W×3, at ``fps`` or the file's own rate, without holding the whole clip.

    The frame rate is appended to ``rates`` once it is known: at the latest with the last frame, or after `LONGEST`
    frames. An image is one frame, of unknown rate (NaN). Raises BadRequest if the file is damaged or not a clip.
    """
    path, rates = readable_path(path), [] if rates is None else rates
    if _is_still(path):
        rates.append(math.nan)
        yield read_image(path)[0, :, 0].add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
        return
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


def frame_sizes(path: Path, fps: float | None) -> tuple[int, int, int]:
    """Return (number, height, width) of the frames that `read_frames` yields, at most `LONGEST` of them.

    One frame is decoded; streams are counted by their time stamps. A file that is damaged further on may have fewer.
    Raises BadRequest as `read_frames` does.
    """
    path = readable_path(path)
    if _is_still(path):
        return (1, *read_image(path).shape[3:])
    height, width = next(read_frames(path, None)).shape[:2]
    kind = None if path.is_dir() else sniff(path)
    timed = (
        iter(survey(path, kind, _LIMITS).timed) if kind in _COUNTED else timed_frames(path, _LIMITS, Part(fps=fps))[1]
    )
    frames = frames_from(path.name, timed, None, _LIMITS)
    count = sum(1 for _ in islice(resampled(frames, fps, None) if fps else frames, LONGEST))
    return count, height, width


_COUNTED = (*STREAMED, "gif")


def _is_still(path: Path) -> bool:
    return path.suffix.lower() in IMAGES and path.is_file() and is_image(path)


def _no_pixels() -> np.ndarray:
    raise RuntimeError("the pixels of this frame were released")
