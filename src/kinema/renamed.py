"""Options under the names that they had in the version before: still taken, said, and gone in the next one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from kinema.schema import BadRequest, Request
from kinema.values import quoted


def _stops(told: Any) -> dict[str, str]:
    """AnimateDiff's ``travel``: a mapping of frames to prompts, or text such as "8: autumn | 15: winter"."""
    if isinstance(told, str):
        parts = [part.partition(":") for part in told.split("|")]
        if not all(colon and frame.strip().isdecimal() for frame, colon, _ in parts):
            raise BadRequest(f"travel is {quoted(told)}; expected frames and prompts, such as '0: spring | 8: autumn'")
        told = {frame.strip(): text.strip() for frame, _, text in parts}
    if not isinstance(told, Mapping):
        raise BadRequest(f"travel is {quoted(told)}; expected a mapping of frames to prompts")
    try:
        return {str(int(frame)): str(text) for frame, text in told.items()}
    except (TypeError, ValueError):
        raise BadRequest(f"travel is {quoted(told)}; expected whole frame numbers") from None


OF_FAMILIES: Mapping[str, tuple[str, Callable[[Any], Any]]] = {"travel": ("prompt_spans", _stops)}
"""Options that were a family's own (in ``extra``): old name to the field of `Request`, and how the old value reads."""


def renamed(request: Request) -> tuple[Request, tuple[str, ...]]:
    """The request with the names of this version, and a sentence on each that it had under an old one.

    Raises `BadRequest` for an old value that cannot be read, and where both names are given.
    """
    extra, fields, notes = dict(request.extra), {}, []
    for old, (name, read) in OF_FAMILIES.items():
        if old not in extra:
            continue
        if getattr(request, name) != getattr(Request(), name):
            raise BadRequest(f"{old} is the old name of {name}: give {name} alone")
        fields[name] = read(extra.pop(old))
        notes.append(f"{old} is now {name}; the old name goes in the next version")
    return (replace(request, extra=extra, **fields) if notes else request), tuple(notes)
