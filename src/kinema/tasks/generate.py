"""Text to video: nothing is known."""

from __future__ import annotations

from kinema.schema import BadRequest, Canvas, OnEvent, Request
from kinema.tasks.known import blank, need_prompt


def plan(request: Request) -> Request:
    need_prompt(request)
    if request.loop and request.window is None:
        raise BadRequest("generate makes a loop out of windows that wrap around: give window too")
    return request


def canvas(request: Request, on_event: OnEvent) -> Canvas:  # noqa: ARG001
    return Canvas(*blank(request))
