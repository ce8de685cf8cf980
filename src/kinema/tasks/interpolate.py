"""Frames between: every k-th frame is known, or the two ends."""

from __future__ import annotations

from kinema.media import read
from kinema.schema import BadRequest, Canvas, Note, OnEvent, Request
from kinema.tasks.known import blank, first_frame, frames_of


def plan(request: Request) -> Request:
    """From a clip: ``every - 1`` new frames between neighbours, at ``every`` times its rate."""
    if request.video is None:
        if request.image is None or request.last_image is None:
            raise BadRequest("interpolate needs a video, or an image and a last_image: give their files")
        if request.every is not None:
            raise BadRequest("interpolate between two pictures makes no use of every; frames says how many")
        return request
    if request.image is not None or request.last_image is not None:
        raise BadRequest("interpolate takes a video, or an image and a last_image, not both")
    every = request.every or 2
    probe = read.probe(request.video)
    if probe.frames < 2:
        raise BadRequest(f"{request.video} has {probe.frames} frame; interpolate needs two or more")
    frames = request.frames or (probe.frames - 1) * every + 1
    return request.with_(every=every, frames=frames, fps=request.fps or probe.fps * every)


def canvas(request: Request, on_event: OnEvent) -> Canvas:
    video, mask = blank(request)
    if request.video is None:
        assert request.image is not None
        assert request.last_image is not None
        video[:, :, :1] = first_frame(request, request.image, on_event)
        video[:, :, -1:] = first_frame(request, request.last_image, on_event)
        mask[:, :, [0, -1]] = 1
        return Canvas(video, mask)
    places = range(0, request.shape.frames, request.every or 2)
    known = frames_of(request, request.video, on_event, frames=len(places))
    left = read.probe(request.video).frames - known.shape[2]
    if left > 0:
        on_event(Note(f"the last {left} frames of {request.video} do not fit; ask for more --frames to use them"))
    at = list(places)[: known.shape[2]]
    video[:, :, at], mask[:, :, at] = known, 1
    return Canvas(video, mask)
