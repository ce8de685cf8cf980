"""Image to video: frame 0 is known, and the last frame when ``last_image`` or ``loop`` gives it.

With a ``region`` or ``mask`` it is a cinemagraph: the picture stands still everywhere else.
"""

from __future__ import annotations

from kinema.canvas import Canvas
from kinema.schema import OnEvent, Request
from kinema.tasks.inpaint import check_region, wanted
from kinema.tasks.known import blank, first_frame, need, one_of


def plan(request: Request) -> Request:
    need(request, "image")
    one_of(request, "last_image", "loop")
    check_region(request)
    return request


def canvas(request: Request, on_event: OnEvent) -> Canvas:
    assert request.image is not None
    video, mask = blank(request)
    picture = first_frame(request, request.image, on_event)
    video[:, :, :1], mask[:, :, 0] = picture, 1
    if request.region or request.mask:
        video[:], mask[:] = picture, 1 - wanted(request, on_event)
        mask[:, :, 0] = 1
    if request.last_image or request.loop:
        last = first_frame(request, request.last_image, on_event) if request.last_image else picture
        video[:, :, -1:], mask[:, :, -1] = last, 1
    return Canvas.of(video, mask)
