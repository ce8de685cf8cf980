"""Prompts over the frames of a clip: which prompt each frame has, and how one turns into the next.

A request's ``prompt_spans`` are stops on the line of frames. Inside a stop the prompt is constant; between two it goes
in a straight line from the one to the other; after the last it is held. This module loads nothing heavy: what a share
between two prompts means is the family's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from kinema.schema import MAX_FRAMES, BadRequest, Request
from kinema.values import cut, quoted

MOST = 256
"""Prompts that a clip may have."""
_FRAMES = re.compile(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?")
_TOLD = 24
"""Characters of a stranger's frames in a sentence."""


@dataclass(frozen=True)
class Stop:
    """``text`` is the prompt of the frames ``first`` to ``last``, both included."""

    first: int
    last: int
    text: str

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True)
class Spans:
    """At least one stop, in order; none overlap. Frames are of the whole clip, also where it is made in blocks."""

    stops: tuple[Stop, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """The different prompts, in the order in which they are first shown."""
        return tuple(dict.fromkeys(stop.text for stop in self.stops))

    def mix(self, frame: int) -> tuple[str, str, float]:
        """The prompts before and after a frame, and the share in [0, 1) of the one after."""
        before = max((stop for stop in self.stops if stop.first <= frame), key=_first, default=self.stops[0])
        after = min((stop for stop in self.stops if stop.first > frame), key=_first, default=before)
        if after is before or frame <= before.last:
            return before.text, before.text, 0.0
        return before.text, after.text, (frame - before.last) / (after.first - before.last)

    def at(self, frame: int) -> str:
        """The prompt of a frame where prompts do not blend: each holds until the next one begins."""
        return self.mix(frame)[0]


def spans_of(request: Request) -> Spans | None:
    """The prompts over frames that a request asks for; None where it has one prompt for all.

    ``prompt`` is that of frame 0, unless it is empty or a span covers that frame. Raises `BadRequest` for frames that
    cannot be read, are in two spans or run backwards, for an empty text, and for more than `MOST` spans. Whether
    the clip has these frames is another question (`check`): a block of a clip has only some of them.
    """
    told = request.prompt_spans
    if not told:
        return None
    if len(told) > MOST:
        raise BadRequest(f"prompt_spans has {len(told):,} prompts; expected at most {MOST}")
    stops = sorted((_stop(frames, text) for frames, text in told.items()), key=_first)
    for one, other in pairwise(stops):
        if other.first <= one.last:
            raise BadRequest(f"prompt_spans has two prompts for frame {other.first}: those at {one} and at {other}")
    if stops[0].first > 0 and request.prompt.strip():
        stops.insert(0, Stop(0, 0, request.prompt))
    return Spans(tuple(stops))


def later(told: Mapping[str, str], frames: int) -> dict[str, str]:
    """Prompt spans that come so many frames later."""
    stops = [_stop(frames_of, text) for frames_of, text in told.items()] if frames else []
    moved = {str(Stop(stop.first + frames, stop.last + frames, "")): stop.text for stop in stops}
    return moved if frames else dict(told)


def check(request: Request) -> None:
    """Refuse prompt spans that `spans_of` refuses, and those of frames that the clip does not have (if it is known)."""
    spans = spans_of(request)
    if spans is None or request.frames is None:
        return
    if (last := spans.stops[-1].last) >= request.frames:
        raise BadRequest(f"prompt_spans names frame {last}; this clip has frames 0 to {request.frames - 1}")


def _stop(frames: str, text: str) -> Stop:
    found = _FRAMES.fullmatch(frames)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (MAX_FRAMES, MAX_FRAMES)
    if max(first, last) >= MAX_FRAMES:
        wanted = f"a frame such as 8, or frames such as 8-15, from 0 to {MAX_FRAMES - 1}"
        raise BadRequest(f"prompt_spans has a prompt at {quoted(frames, _TOLD)}; expected {wanted}")
    if last < first:
        raise BadRequest(f"prompt_spans has a prompt at {cut(frames, _TOLD)}, which ends before it starts")
    if not text.strip():
        raise BadRequest(f"prompt_spans has an empty prompt at {cut(frames, _TOLD)}; say what to show")
    return Stop(first, last, text)


def _first(stop: Stop) -> int:
    return stop.first
