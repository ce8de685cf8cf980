"""Prompt spans: the prompt of each frame, and the interpolation between prompts.

A request's ``prompt_spans`` are stops on the timeline. The prompt is constant within a stop, is interpolated linearly
between stops and is held after the last one. The family decides how to blend two prompts. Imports without torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from kinema.schema import MAX_FRAMES, BadRequest, Request
from kinema.values import cut, quoted

MOST = 256
"""Maximum prompts per clip."""
_FRAMES = re.compile(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?")
_QUOTED = 24
"""Characters of an untrusted frame range that an error message quotes."""


@dataclass(frozen=True)
class Stop:
    """``text`` is the prompt of frames ``first`` to ``last``, inclusive."""

    first: int
    last: int
    text: str

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True)
class Spans:
    """One or more stops, sorted and disjoint. Frames are numbered over the whole clip, not per block."""

    stops: tuple[Stop, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """The distinct prompts, in order of first use."""
        return tuple(dict.fromkeys(stop.text for stop in self.stops))

    def mix(self, frame: int) -> tuple[str, str, float]:
        """Return the prompts before and after a frame, and the weight in [0, 1) of the second."""
        before = max((stop for stop in self.stops if stop.first <= frame), key=_first, default=self.stops[0])
        after = min((stop for stop in self.stops if stop.first > frame), key=_first, default=before)
        if after is before or frame <= before.last:
            return before.text, before.text, 0.0
        return before.text, after.text, (frame - before.last) / (after.first - before.last)

    def at(self, frame: int) -> str:
        """Return the prompt of a frame without blending: each prompt holds until the next one starts."""
        return self.mix(frame)[0]


def spans_of(request: Request) -> Spans | None:
    """Parse a request's prompt spans; None if one prompt applies to all frames.

    ``prompt`` applies at frame 0, unless it is empty or a span covers that frame. Raises `BadRequest` for invalid,
    overlapping or reversed frame ranges, empty prompts and more than `MOST` spans. `check` compares the frames with
    the length of the clip; a block of a clip has only some of them.
    """
    given = request.prompt_spans
    if not given:
        return None
    if len(given) > MOST:
        raise BadRequest(f"there are {len(given):,} prompt spans; expected at most {MOST}")
    stops = sorted((_stop(frames, text) for frames, text in given.items()), key=_first)
    for one, other in pairwise(stops):
        if other.first <= one.last:
            raise BadRequest(f"frame {other.first} has two prompts: those at {one} and {other}")
    if stops[0].first > 0 and request.prompt.strip():
        stops.insert(0, Stop(0, 0, request.prompt))
    return Spans(tuple(stops))


def later(spans: Mapping[str, str], frames: int) -> dict[str, str]:
    """Return prompt spans shifted by ``frames``."""
    stops = [_stop(where, text) for where, text in spans.items()] if frames else []
    shifted = {str(Stop(stop.first + frames, stop.last + frames, "")): stop.text for stop in stops}
    return shifted if frames else dict(spans)


def check(request: Request) -> None:
    """Raise `BadRequest` for invalid prompt spans, including those beyond the end of a clip of known length."""
    spans = spans_of(request)
    if spans is None or request.frames is None:
        return
    if (last := spans.stops[-1].last) >= request.frames:
        raise BadRequest(f"there is a prompt at frame {last}; this clip has frames 0 to {request.frames - 1}")


def _stop(frames: str, text: str) -> Stop:
    found = _FRAMES.fullmatch(frames)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (MAX_FRAMES, MAX_FRAMES)
    if max(first, last) >= MAX_FRAMES:
        expected = f"a frame such as 8, or frames such as 8-15, from 0 to {MAX_FRAMES - 1}"
        raise BadRequest(f"there is a prompt at {quoted(frames, _QUOTED)}; expected {expected}")
    if last < first:
        raise BadRequest(f"prompt span {cut(frames, _QUOTED)} ends before it starts; expected {last}-{first}")
    if not text.strip():
        raise BadRequest(f"the prompt at {cut(frames, _QUOTED)} is empty; expected text that describes the clip")
    return Stop(first, last, text)


def _first(stop: Stop) -> int:
    return stop.first
