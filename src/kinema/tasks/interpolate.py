"""Frames between: every k-th frame is known, or the two ends."""

from __future__ import annotations

from dataclasses import replace

from kinema.media import read
from kinema.schema import BadRequest, Canvas, Note, OnEvent, Request
from kinema.tasks.known import blank, first_frame, fitted, need


def plan(request: Request) -> Request:
    """From a clip: ``every - 1`` new frames between neighbours, at ``every`` times its rate."""
    if request.video is None:
        if request.image is None or request.last_image is None:
            raise BadRequest("interpolate needs a video, or an image and a last_image: give their files")
        return request
    need(request, "video")
    every = request.every or 2
    clip = read.read_video(request.video)
    count = clip.shape.frames
    if count < 2:
        raise BadRequest(f"{request.video} has {count} frame; interpolate needs two or more")
    frames = request.frames or (count - 1) * every + 1
    return replace(request, every=every, frames=frames, fps=request.fps or clip.fps * every)


def canvas(request: Request, on_event: OnEvent) -> Canvas:
    video, mask = blank(request)
    if request.video is None:
        assert request.image is not None
        assert request.last_image is not None
        video[:, :, :1] = first_frame(request, request.image, on_event)
        video[:, :, -1:] = first_frame(request, request.last_image, on_event)
        mask[:, :, [0, -1]] = 1
        return Canvas(video, mask)
    every = request.every or 2
    known = fitted(request, read.read_video(request.video), request.video, on_event)
    places = list(range(0, request.shape.frames, every))[: known.shape[2]]
    if len(places) < known.shape[2]:
        on_event(Note(f"the first {len(places)} of {known.shape[2]} frames fit; ask for more --frames to use them all"))
    video[:, :, places], mask[:, :, places] = known[:, :, : len(places)], 1
    return Canvas(video, mask)
