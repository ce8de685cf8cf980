"""Text to video: nothing is known."""

from __future__ import annotations

from kinema.schema import Canvas, OnEvent, Request
from kinema.tasks.known import blank


def plan(request: Request) -> Request:
    return request


def canvas(request: Request, on_event: OnEvent) -> Canvas:  # noqa: ARG001
    return Canvas(*blank(request))
