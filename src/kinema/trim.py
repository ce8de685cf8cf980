"""Trimming: parse ``start`` and ``end``, in seconds or frames, and select the frames of a clip.

Frames are counted from 0 at the clip's constant rate as it is decoded; the end is exclusive. Seconds are rounded to the
nearest frame, so adjacent parts neither share nor lose a frame.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from kinema.schema import BadRequest, plain_number
from kinema.values import counted, cut, quoted

_FRAME = re.compile(r"\s*([0-9]{1,9})\s*f\s*")
_SECONDS = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})\s*s?\s*")
_CLOCK = re.compile(r"\s*(?:([0-9]{1,3}):)?([0-9]{1,4}):([0-9]{1,2}(?:\.[0-9]{0,12})?)\s*")
_MOST = 10**9
_EXPECTED = "expected seconds (1.5 or 0:01.5) or a frame (36f)"
_MAX_NAME = 100
"""Characters of a file name in an error message."""


@dataclass(frozen=True)
class Mark:
    """A position in a clip, in seconds or frames from its first frame."""

    amount: float
    of_frames: bool = False

    def frame(self, fps: float) -> int:
        """Return the frame number, rounding seconds to the nearest frame."""
        return int(self.amount) if self.of_frames else math.floor(self.amount * fps + 0.5)

    def __str__(self) -> str:
        return f"frame {plain_number(self.amount)}" if self.of_frames else f"{plain_number(self.amount)} s"


@dataclass(frozen=True)
class Trim:
    """A part of a clip: from ``start`` until before ``end``; None means the clip's own start or end."""

    start: Mark | None = None
    end: Mark | None = None

    def __bool__(self) -> bool:
        return self.start is not None or self.end is not None

    def frames(self, name: str, count: int, fps: float) -> range:
        """Return the selected frames of the clip ``name``. Raises `BadRequest` if they exceed its ``count`` frames."""
        first, stop = 0 if self.start is None else self.start.frame(fps), count
        length = f"{cut(name, _MAX_NAME)} has {counted(count, 'frame')} ({count / fps:.4g} s)"
        if first >= count:
            raise BadRequest(f"start is {self.start}, but {length}; expected an earlier start")
        if self.end is not None:
            stop = self.end.frame(fps)
            if stop > count:
                raise BadRequest(f"end is {self.end}, but {length}; expected an earlier end, or none")
            if stop <= first:
                begins = "" if self.start is None else f"start is {self.start} and "
                raise BadRequest(
                    f"{begins}end is {self.end}, which leaves no frame of {cut(name, _MAX_NAME)} at {fps:.4g} fps; "
                    "expected a later end"
                )
        return range(first, stop)


def trim_of(start: Any, end: Any) -> Trim:
    """Parse a request's start and end: numbers are seconds, text is ``1.5``, ``1.5s``, ``0:01.5`` or ``36f``.

    Raises `BadRequest` for anything else but None, and for an end that is not after the start.
    """
    trim = Trim(_mark("start", start), _mark("end", end))
    if trim.start and trim.end and trim.start.of_frames == trim.end.of_frames and trim.end.amount <= trim.start.amount:
        raise BadRequest(f"end is {trim.end} and start is {trim.start}; expected an end after the start")
    return trim


def _mark(name: str, value: Any) -> Mark | None:
    if value is None:
        return None
    if isinstance(value, str):
        if found := _FRAME.fullmatch(value):
            return Mark(int(found[1]), of_frames=True)
        if found := _SECONDS.fullmatch(value):
            return Mark(float(found[1]))
        found = _CLOCK.fullmatch(value)
        if found and float(found[3]) < 60 and (found[1] is None or int(found[2]) < 60):
            return Mark(3600 * int(found[1] or 0) + 60 * int(found[2]) + float(found[3]))
    elif isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _MOST:
        return Mark(float(value))
    raise BadRequest(f"{name} is {quoted(value)}; {_EXPECTED}, 0 or later")
