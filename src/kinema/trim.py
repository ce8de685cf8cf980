"""The part of a clip that a request takes: ``start`` and ``end``, in seconds or frames.

Frames are those of the clip as it is read, at its own even rate: the first is 0, and that of the end is left out.
Seconds mean the nearest frame, so that two parts that meet at a time share no frame and lose none.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from kinema.schema import BadRequest, plain
from kinema.values import counted, cut, quoted

_FRAME = re.compile(r"\s*([0-9]{1,9})\s*f\s*")
_SECONDS = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})\s*s?\s*")
_CLOCK = re.compile(r"\s*(?:([0-9]{1,3}):)?([0-9]{1,4}):([0-9]{1,2}(?:\.[0-9]{0,12})?)\s*")
_MOST = 10**9
_WANTED = "expected seconds (1.5 or 0:01.5) or a frame (36f)"
_NAMED = 100
"""Characters of a file's name in a sentence."""


@dataclass(frozen=True)
class Mark:
    """A place in a clip: so many seconds, or frames, after its first frame."""

    amount: float
    of_frames: bool = False

    def frame(self, fps: float) -> int:
        """The frame that is meant, or the nearest one to a time."""
        return int(self.amount) if self.of_frames else math.floor(self.amount * fps + 0.5)

    def __str__(self) -> str:
        return f"frame {plain(self.amount)}" if self.of_frames else f"{plain(self.amount)} s"


@dataclass(frozen=True)
class Trim:
    """What is taken of a clip: from ``start`` until before ``end``; None is the clip's own."""

    start: Mark | None = None
    end: Mark | None = None

    def __bool__(self) -> bool:
        return self.start is not None or self.end is not None

    def frames(self, name: str, count: int, fps: float) -> range:
        """Which of the ``count`` frames of the clip ``name`` are taken. Raises `BadRequest` for those that it lacks."""
        first, stop = 0 if self.start is None else self.start.frame(fps), count
        told = f"{cut(name, _NAMED)} has {counted(count, 'frame')} ({count / fps:.4g} s)"
        if first >= count:
            raise BadRequest(f"start is {self.start}, but {told}; expected an earlier start")
        if self.end is not None:
            stop = self.end.frame(fps)
            if stop > count:
                raise BadRequest(f"end is {self.end}, but {told}; expected an earlier end, or none")
            if stop <= first:
                begins = "" if self.start is None else f"start is {self.start} and "
                raise BadRequest(
                    f"{begins}end is {self.end}, which leaves no frame of {cut(name, _NAMED)} at {fps:.4g} fps; "
                    "expected a later end"
                )
        return range(first, stop)


def trim_of(start: Any, end: Any) -> Trim:
    """The part that two fields of a request ask for: numbers are seconds, texts are ``1.5``, ``1.5s``, ``0:01.5`` or
    ``36f``, and None asks for nothing. Raises `BadRequest` for anything else, and for an end that is before the start.
    """
    trim = Trim(_mark("start", start), _mark("end", end))
    if trim.start and trim.end and trim.start.of_frames == trim.end.of_frames and trim.end.amount <= trim.start.amount:
        raise BadRequest(f"end is {trim.end} and start is {trim.start}; expected an end after the start")
    return trim


def _mark(name: str, told: Any) -> Mark | None:
    if told is None:
        return None
    if isinstance(told, str):
        if found := _FRAME.fullmatch(told):
            return Mark(int(found[1]), of_frames=True)
        if found := _SECONDS.fullmatch(told):
            return Mark(float(found[1]))
        found = _CLOCK.fullmatch(told)
        if found and float(found[3]) < 60 and (found[1] is None or int(found[2]) < 60):
            return Mark(3600 * int(found[1] or 0) + 60 * int(found[2]) + float(found[3]))
    elif isinstance(told, int | float) and not isinstance(told, bool) and 0 <= told < _MOST:
        return Mark(float(told))
    raise BadRequest(f"{name} is {quoted(told)}; {_WANTED}, from 0")
