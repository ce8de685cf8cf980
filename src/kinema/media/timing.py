"""Which frames of a video are taken, and when they are shown: limits, parts, even rates."""

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
"""Height × width of one video frame: 8K fits."""
DECODED = {"video": (5 * 2**28, 1024), "pictures": (2**28, 64)}
"""Pixels over all frames that a file may decode to, and how many more for each of its bytes.

A clip of five seconds in 4K, or a gif of 500 frames in 480p, fits whatever its size; long films have the bytes. Gifs,
webps, pngs and folders count as pictures: a pixel of theirs takes several times as long.
"""
_TRIMMED = 2**26
"""Pixels after which the memory of decoded frames is given back."""
MAX_STILL = 3600.0
"""Seconds that one frame of a clip may last."""
DEFAULT_FPS = 8.0
"""The rate of a folder of frames, or of a single frame, that says none."""
RATES = (0.1, 240.0)
MILLISECOND = 1e-3
"""The coarsest clock whose declared rate means something: a gif counts in hundredths of a second."""


@dataclass(frozen=True)
class Limits:
    """What one read may use; each is counted while decoding, none is taken from the header."""

    frames: int
    pixels: int
    seconds: float

    def check_frame(self, name: str, height: int, width: int) -> None:
        if height * width > self.frame:
            option = "" if self.pixels < MAX_FRAME_PIXELS else "; --max-pixels raises that"
            raise BadRequest(f"{name} is {width}×{height}; at most {self.frame:,} pixels a frame are read{option}")

    @property
    def frame(self) -> int:
        """Height × width that a frame may have."""
        return min(bounds.pixels(MAX_FRAME_PIXELS), self.pixels)

    def check(self, name: str, frames: int, pixels: int) -> None:
        if frames > self.frames:
            raise BadRequest(f"{name} has more than {self.frames} frames; take a part of it with start and end")
        if pixels > self.pixels:
            raise BadRequest(
                f"{name} is more than {self.pixels:,} pixels over all frames; take a part of it with start and end"
            )


@dataclass
class Budget:
    """The pixels that one file may decode to, settled by its bytes; what is decoded is counted against it."""

    name: str
    most: int
    used: int = 0

    @staticmethod
    def of(name: str, size: int, what: Literal["video", "pictures"]) -> Budget:
        base, each = DECODED[what]
        return Budget(name, bounds.pixels(base + each * size))

    def check(self, frames: int, height: int, width: int) -> None:
        """Refuse, before any of it is decoded, a file whose structure says that it holds too much."""
        if frames * height * width > self.most:
            raise BadRequest(
                f"{self.name} holds {frames:,} frames of {width}×{height}, more than the {self.most:,} pixels "
                "allowed for a file of its size; --max-pixels raises that"
            )

    def take(self, height: int, width: int) -> None:
        """Count one frame that is decoded."""
        before, self.used = self.used, self.used + height * width
        if before // _TRIMMED != self.used // _TRIMMED:
            # Small frames that are kept lie between large ones that are freed: 500 frames of 800×660 held 2 GiB.
            heap.give_back()
        if self.used > self.most:
            raise BadRequest(
                f"{self.name} decodes to more than the {self.most:,} pixels allowed for a file of its size; "
                "--max-pixels raises that"
            )


@dataclass(frozen=True)
class Timed:
    """A decoded frame as a promise: ``pixels()`` is uint8 H×W×3; times in seconds.

    ``clock`` is the step of the container's time stamps, ``declared`` the rate that it claims, if any;
    ``note`` is what a user is told of its pixels, after the file's name; ``nature`` names HDR and alpha, for `facts`.
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
    """Which part of a video is wanted: at most ``frames``, at ``fps``; all of it where nothing is given.

    A part that begins later has ``begin``, in seconds: nothing before the frame that is shown then is wanted. ``seek``
    is the time stamp of a key frame that is not after it, where decoding may begin. Where frames are chosen by a rate,
    they lie on a grid from ``origin`` seconds on, of which the first ``skip`` places are left out.
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
        """The part, cut to so many frames."""
        told = [count for count in (self.frames, frames) if count is not None]
        return replace(self, frames=min(told, default=None))


def part_of(taken: range, whole: Timeline, fps: float | None) -> Part:
    """The part that has the frames ``taken`` of a clip, brought to ``fps`` where one is given.

    Without a rate, or at its own, it has the very frames that the whole clip has there.
    """
    first, count, rate = taken.start, len(taken), whole.rate
    if whole.even and fps in (None, whole.known):
        begin = whole.times[first].time
        return Part(count, fps, begin, whole.key_before(begin))
    origin, fps = whole.times[0].time, fps or rate
    # The last frame lasts as long as it says, which is not always what the rate says.
    frames = None if taken.stop == whole.frames else max(1, math.floor(count * (fps / rate) + 0.5))
    begin = origin + first / rate
    return Part(frames, fps, begin, whole.key_before(begin), origin, first * (fps / rate))


@dataclass(frozen=True)
class Timeline:
    """All frames of a clip by their times, and what they become when it is read: ``frames`` at an even ``rate``.

    ``even`` says whether they are read as they are; ``known`` is the rate of a clip that tells it before decoding.
    ``keys`` are the times of key frames, with their stamps, where decoding can begin in the middle of a file.
    """

    times: list[Timed]
    frames: int
    rate: float
    even: bool
    known: float | None
    keys: list[tuple[float, int]] = field(default_factory=list)

    def key_before(self, begin: float) -> int | None:
        """The stamp of the last key frame at or before ``begin``; None where the file is read from its beginning."""
        return max((key for key in self.keys if key[0] <= begin), default=(0.0, None))[1]

    def needed(self, part: Part) -> list[Timed]:
        """The frames that have to be decoded for a part."""
        begin = part.begin or 0.0
        first = max((at for at, frame in enumerate(self.times) if frame.time <= begin), default=0)
        if part.frames is None:
            return self.times[first:]
        if part.origin is None:
            return self.times[first : first + part.frames]
        end = part.origin + (part.skip + part.frames) / (part.fps or self.rate)
        return [frame for frame in self.times[first:] if frame.time < end]


def within(name: str, timed: Iterator[Timed], begin: float | None, limits: Limits) -> Iterator[Timed]:
    """Frames from the one on that is shown at ``begin``, refused where they last longer than the limit."""
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
            raise BadRequest(f"{name} is longer than {limits.seconds:g} seconds; take a part of it with start and end")
        yield frame
    if first is None and before is None:
        raise BadRequest(f"{name} holds no video frames")
    if first is None and before is not None:
        yield before


def check_still(name: str, seconds: float) -> None:
    """Refuse a gap between two frames, or a last frame, that would have to be filled with copies without end."""
    if seconds > MAX_STILL:
        raise BadRequest(f"{name} stands still for {seconds:,.0f} seconds; at most {MAX_STILL:,.0f} are filled")


def resampled(
    timed: Iterable[Timed], fps: float, frames: int | None, origin: float | None = None, skip: float = 0.0
) -> Iterator[Timed]:
    """One frame per 1/fps seconds, each the nearest in time; the last one lasts as long as it says.

    The seconds are counted from ``origin``, or the first frame, and ``skip`` frames at that rate are left out.
    """
    held, made = None, 0
    for frame in timed:
        if origin is None:
            origin = frame.time
        if held is None:
            held = frame
            continue
        while origin + (skip + made) / fps <= (held.time + frame.time) / 2:
            yield held
            made += 1
            if made == frames:  # at once: the next turn would decode a frame that nobody wants
                return
        held = frame
    while held is not None and origin is not None and made != frames:
        if made and origin + (skip + made + 0.5) / fps > held.time + held.duration:
            return
        yield held
        made += 1


def even_rate(frames: Sequence[Timed]) -> tuple[bool, float]:
    """Whether the time stamps are even, and the rate: their mean, or one over the median gap.

    A rate outside `RATES` counts as uneven, so that frames are repeated or left out and the clip keeps its length.
    """
    if len(frames) == 1:
        hold = frames[0].duration
        return True, float(np.clip(1 / hold, *RATES)) if hold > 0 else DEFAULT_FPS
    # The last hold counts as a gap: a gif that rests on its last picture is uneven, and says how long.
    gaps = [b.time - a.time for a, b in pairwise(frames)] + [f.duration for f in frames[-1:] if f.duration > 0]
    typical = statistics.median(gaps)
    if typical <= 0:
        return True, DEFAULT_FPS
    even = 0.5 * typical <= min(gaps) and max(gaps) <= 1.5 * typical
    span = sum(gaps) if even else typical
    rate = len(gaps) / span if even else 1 / typical
    clock = frames[0].clock
    declared = frames[0].declared if clock <= MILLISECOND else 0.0
    # A constant delay is meant as it stands; others are rounded to the clock.
    constant = not declared and max(gaps) - min(gaps) < 1e-9
    error = 1e-9 if constant else max(4e-4, 2 * clock / span)
    stamps = np.cumsum(gaps) if clock > MILLISECOND and even else np.empty(0)
    meant = _meant(rate, error, declared, stamps, clock)
    most = float(np.clip(meant, *RATES))
    return even and abs(meant - most) < 1e-6 * most, most


def _meant(rate: float, error: float, declared: float, stamps: np.ndarray, clock: float) -> float:
    """The rate that a measured one stands for, given the relative error that the container's clock allows.

    ``stamps`` are the ends of the frames where that clock is coarse: each is off by half a step of it at
    most, the last one by a whole step, since writers guess how long the last frame is shown.
    """
    counts = np.arange(1, len(stamps) + 1)
    slack = np.where(counts < len(stamps), 0.501, 1.001) * clock
    for candidate in (declared, round(rate), round(rate * 2) / 2, round(rate) * 1000 / 1001):
        if candidate <= 0 or abs(candidate - rate) > error * rate:
            continue
        if bool((abs(stamps - counts / candidate) <= slack).all()):
            return candidate
    return rate
