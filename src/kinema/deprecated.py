"""Deprecated option names: accepted with a note, and removed in the next version."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from kinema.schema import BadRequest, Request, flag
from kinema.values import quoted


def _stops(value: Any) -> dict[str, str]:
    """Parse AnimateDiff's ``travel``: a mapping of frames to prompts, or text such as "8: autumn | 15: winter"."""
    if isinstance(value, str):
        parts = [part.partition(":") for part in value.split("|")]
        if not all(colon and frame.strip().isdecimal() for frame, colon, _ in parts):
            raise BadRequest(f"travel is {quoted(value)}; expected frames and prompts, such as '0: spring | 8: autumn'")
        value = {frame.strip(): text.strip() for frame, _, text in parts}
    if not isinstance(value, Mapping):
        raise BadRequest(f"travel is {quoted(value)}; expected a mapping of frames to prompts")
    try:
        return {str(int(frame)): str(text) for frame, text in value.items()}
    except (TypeError, ValueError):
        raise BadRequest("travel has a frame that is not a whole number; expected frames such as 8") from None


FAMILY_OPTIONS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {"travel": ("prompt_spans", _stops)}
"""Former options of a family (in ``extra``): old name to the field of `Request` and the parser of the old value."""


def renamed(request: Request) -> tuple[Request, tuple[str, ...]]:
    """Return the request with current option names, and a note on each renamed option.

    Raises `BadRequest` for an invalid old value, and if both names are given.
    """
    extra, fields, notes = dict(request.extra), {}, []
    for old, (name, read) in FAMILY_OPTIONS.items():
        if old not in extra:
            continue
        if getattr(request, name) != getattr(Request(), name):
            raise BadRequest(f"{old} is the old name of {flag(name)}: give only {flag(name)}")
        fields[name] = read(extra.pop(old))
        notes.append(f"{old} is now {flag(name)} ({name} in Python); the next version removes the old name")
    return (replace(request, extra=extra, **fields) if notes else request), tuple(notes)
