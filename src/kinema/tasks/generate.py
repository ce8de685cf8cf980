"""Text to video: no pixels are given."""

from __future__ import annotations

from kinema.canvas import Canvas
from kinema.events import OnEvent
from kinema.schema import Request


def plan(request: Request) -> Request:
    return request


def canvas(request: Request, on_event: OnEvent) -> Canvas:  # noqa: ARG001
    return Canvas(request.shape)
