"""Frame timing: limits, parts of a video, resampling to even rates."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from kinema import bounds, heap
from kinema.schema import BadRequest

MAX_FRAME_PIXELS = 2**25
"""Largest height × width of a video frame; 8K fits."""
DECODED = {"video": (5 * 2**28, 1024), "images": (2**28, 64)}
"""Pixels over all frames that a file may decode to: a constant, plus a number per byte of the file.

Five seconds of 4K, or a gif of 500 frames in 480p, always fit; long films get more by their size. Gifs, webps,
pngs and folders count as images, which take several times as long to decode per pixel.
"""
_TRIMMED = 2**26
"""Decoded pixels after which freed memory is returned to the system."""
MAX_STILL = 3600.0
"""Longest duration of one frame, in seconds."""
DEFAULT_FPS = 8.0
"""Rate of a folder of frames, or a single frame, without a declared rate."""
RATES = (0.1, 240.0)
MILLISECOND = 1e-3
"""The coarsest clock whose declared rate is meaningful; a gif counts in hundredths of a second."""


@dataclass(frozen=True)
class Limits:
    """Limits of one read, counted while decoding rather than taken from headers."""

    frames: int
    pixels: int
    seconds: float

    def check_frame(self, name: str, height: int, width: int) -> None:
        if height * width > self.frame:
            option = "" if self.pixels < MAX_FRAME_PIXELS else "; --max-pixels raises that"
            raise BadRequest(f"{name} is {width}×{height}; frames are limited to {self.frame:,} pixels{option}")

    @property
    def frame(self) -> int:
        """Largest height × width of a frame."""
        return min(bounds.max_pixels(MAX_FRAME_PIXELS), self.pixels)

    def check(self, name: str, frames: int, pixels: int) -> None:
        if frames > self.frames:
            raise BadRequest(f"{name} has more than {self.frames} frames; select a part with --start and --end")
        if pixels > self.pixels:
            raise BadRequest(
                f"{name} has more than {self.pixels:,} pixels over all frames; select a part with --start and --end"
            )


@dataclass
class Budget:
    """Pixels that a file may decode to, in proportion to its size, and the number used so far."""

    name: str
    most: int
    used: int = 0

    @staticmethod
    def of(name: str, size: int, what: Literal["video", "images"]) -> Budget:
        base, each = DECODED[what]
        return Budget(name, bounds.max_pixels(base + each * size))

    def check(self, frames: int, height: int, width: int) -> None:
        """Reject, before decoding, a file whose structure declares too many pixels."""
        if frames * height * width > self.most:
            raise BadRequest(
                f"{self.name} has {frames:,} frames of {width}×{height}, more than the {self.most:,} pixels "
                "allowed for a file of its size; --max-pixels raises that"
            )

    def take(self, height: int, width: int) -> None:
        """Count one decoded frame."""
        before, self.used = self.used, self.used + height * width
        if before // _TRIMMED != self.used // _TRIMMED:
            # Small kept frames fragment the heap between large freed ones: 500 frames of 800×660 took 2 GiB.
            heap.give_back()
        if self.used > self.most:
            raise BadRequest(
                f"{self.name} decodes to more than the {self.most:,} pixels allowed for a file of its size; "
                "--max-pixels raises that"
            )


@dataclass(frozen=True)
class TimedFrame:
    """A lazily decoded frame: ``pixels()`` returns uint8 H×W×3; times in seconds.

    ``clock`` is the step of the container's time stamps, ``declared`` its declared rate, if any; ``note`` tells the
    user of pixel conversions, after the file name; ``nature`` names HDR and alpha, for `facts`.
    """

    time: float
    duration: float
    pixels: Callable[[], np.ndarray]
    clock: float = 0.0
    declared: float = 0.0
    note: str = ""
    nature: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """The requested part of a video: at most ``frames``, at ``fps``; by default all of it.

    ``begin`` is the start in seconds: frames before the one displayed then are skipped. ``seek`` is the time stamp of a
    key frame at or before it, where decoding may begin. When resampling, frames are on a grid that starts at ``origin``
    seconds, with the first ``skip`` grid points left out.
    """

    frames: int | None = None
    fps: float | None = None
    begin: float | None = None
    seek: int | None = None
    origin: float | None = None
    skip: float = 0.0

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames < 1:
            raise BadRequest(f"frames is {self.frames}; expected at least 1")
        if self.fps is not None and not RATES[0] <= self.fps <= RATES[1]:
            raise BadRequest(f"fps is {self.fps}; expected 0.1 to 240")

    def at_most(self, frames: int | None) -> Part:
        """The part, limited to ``frames`` frames."""
        counts = [count for count in (self.frames, frames) if count is not None]
        return replace(self, frames=min(counts, default=None))


def part_of(taken: range, whole: Timeline, fps: float | None) -> Part:
    """The part with the frames ``taken`` of a clip, resampled to ``fps`` if given.

    Without ``fps``, or at the clip's own rate, these are exactly the frames of the whole clip.
    """
    first, count, rate = taken.start, len(taken), whole.rate
    if whole.even and fps in (None, whole.known):
        begin = whole.times[first].time
        return Part(count, fps, begin, whole.key_before(begin))
    origin, fps = whole.times[0].time, fps or rate
    # The last frame lasts for its own duration, which may differ from the rate's.
    frames = None if taken.stop == whole.frames else max(1, math.floor(count * (fps / rate) + 0.5))
    begin = origin + first / rate
    return Part(frames, fps, begin, whole.key_before(begin), origin, first * (fps / rate))


@dataclass(frozen=True)
class Timeline:
    """All frame times of a clip, and its ``frames`` and even ``rate`` when read.

    ``even`` means that frames are read without resampling; ``known`` is the rate if it is known before decoding.
    ``keys`` are (time, stamp) of key frames, where decoding can begin in the middle of a file.
    """

    times: list[TimedFrame]
    frames: int
    rate: float
    even: bool
    known: float | None
    keys: list[tuple[float, int]] = field(default_factory=list)

    def key_before(self, begin: float) -> int | None:
        """Return the stamp of the last key frame at or before ``begin``; None to read from the beginning."""
        return max((key for key in self.keys if key[0] <= begin), default=(0.0, None))[1]

    def needed(self, part: Part) -> list[TimedFrame]:
        """Frames that must be decoded for a part."""
        begin = part.begin or 0.0
        first = max((at for at, frame in enumerate(self.times) if frame.time <= begin), default=0)
        if part.frames is None:
            return self.times[first:]
        if part.origin is None:
            return self.times[first : first + part.frames]
        end = part.origin + (part.skip + part.frames) / (part.fps or self.rate)
        return [frame for frame in self.times[first:] if frame.time < end]


def frames_from(name: str, timed: Iterator[TimedFrame], begin: float | None, limits: Limits) -> Iterator[TimedFrame]:
    """Yield frames from the one displayed at ``begin`` on; rejects a total duration over the limit."""
    last, first, before = begin or 0.0, None, None
    for frame in timed:
        check_still(name, max(frame.time - last, frame.duration))
        last = max(last, frame.time + frame.duration)
        if begin is None and frame.time < -frame.duration / 2 - 1e-6:
            continue
        if begin is not None and first is None and frame.time < begin:
            before = frame
            continue
        if first is None:
            first = frame.time if begin is None else begin
            if before is not None and frame.time > first:
                yield before
        if frame.time - first > limits.seconds:
            raise BadRequest(f"{name} is longer than {limits.seconds:g} seconds; select a part with --start and --end")
        yield frame
    if first is None and before is None:
        raise BadRequest(f"{name} contains no video frames")
    if first is None and before is not None:
        yield before


def check_still(name: str, seconds: float) -> None:
    """Reject a gap between frames, or a last frame, so long that filling it would take endless copies."""
    if seconds > MAX_STILL:
        raise BadRequest(f"{name} has a frame that lasts {seconds:,.0f} seconds; the limit is {MAX_STILL:,.0f}")


def resampled(
    timed: Iterable[TimedFrame], fps: float, frames: int | None, origin: float | None = None, skip: float = 0.0
) -> Iterator[TimedFrame]:
    """Yield one frame per 1/fps seconds, each the nearest in time; the last one lasts for its own duration.

    Seconds count from ``origin`` or the first frame; the first ``skip`` frames at that rate are left out.
    """
    current, count = None, 0
    for frame in timed:
        if origin is None:
            origin = frame.time
        if current is None:
            current = frame
            continue
        while origin + (skip + count) / fps <= (current.time + frame.time) / 2:
            yield current
            count += 1
            if count == frames:  # return now: the next iteration would decode an unneeded frame
                return
        current = frame
    while current is not None and origin is not None and count != frames:
        if count and origin + (skip + count + 0.5) / fps > current.time + current.duration:
            return
        yield current
        count += 1


def even_rate(frames: Sequence[TimedFrame]) -> tuple[bool, float]:
    """Whether the time stamps are even, and the rate: their mean, or one over the median gap.

    A rate outside `RATES` counts as uneven, so that frames are repeated or dropped and the duration is kept.
    """
    if len(frames) == 1:
        hold = frames[0].duration
        return True, float(np.clip(1 / hold, *RATES)) if hold > 0 else DEFAULT_FPS
    # The last frame's duration counts as a gap: a gif that pauses on its last frame is uneven.
    gaps = [b.time - a.time for a, b in pairwise(frames)] + [f.duration for f in frames[-1:] if f.duration > 0]
    typical = statistics.median(gaps)
    if typical <= 0:
        return True, DEFAULT_FPS
    even = 0.5 * typical <= min(gaps) and max(gaps) <= 1.5 * typical
    span = sum(gaps) if even else typical
    rate = len(gaps) / span if even else 1 / typical
    clock = frames[0].clock
    declared = frames[0].declared if clock <= MILLISECOND else 0.0
    # A constant delay is exact; others are rounded to the clock.
    constant = not declared and max(gaps) - min(gaps) < 1e-9
    error = 1e-9 if constant else max(4e-4, 2 * clock / span)
    stamps = np.cumsum(gaps) if clock > MILLISECOND and even else np.empty(0)
    nominal = _nominal_rate(rate, error, declared, stamps, clock)
    most = float(np.clip(nominal, *RATES))
    return even and abs(nominal - most) < 1e-6 * most, most


def _nominal_rate(rate: float, error: float, declared: float, stamps: np.ndarray, clock: float) -> float:
    """The nominal rate for a measured one, given the relative error that the container's clock allows.

    ``stamps`` are the frames' end times if that clock is coarse: each is off by at most half a clock step, the last one
    by a whole step, since writers guess how long the last frame is shown.
    """
    counts = np.arange(1, len(stamps) + 1)
    slack = np.where(counts < len(stamps), 0.501, 1.001) * clock
    for candidate in (declared, round(rate), round(rate * 2) / 2, round(rate) * 1000 / 1001):
        if candidate <= 0 or abs(candidate - rate) > error * rate:
            continue
        if bool((abs(stamps - counts / candidate) <= slack).all()):
            return candidate
    return rate
