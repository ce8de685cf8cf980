"""Longer: a clip's frames are known and new ones follow (or lead to it, or close a loop)."""

from __future__ import annotations

from dataclasses import replace

from kinema.media import read
from kinema.schema import BadRequest, Canvas, OnEvent, Request
from kinema.tasks.known import blank, fitted, need

NEW_FRAMES = 12


def plan(request: Request) -> Request:
    """``frames`` counts the whole result; left out, `NEW_FRAMES` are added to the clip (or to ``keep`` of it)."""
    need(request, "video")
    assert request.video is not None
    if request.backward and request.loop:
        raise BadRequest("extend takes backward or loop, not both")
    clip = read.read_video(request.video, fps=request.fps)
    known = min(clip.shape.frames, request.keep or clip.shape.frames)
    frames = request.frames or known + NEW_FRAMES
    if frames <= known:
        raise BadRequest(
            f"{request.video} has {known} frames to keep and {frames} are asked for in all; ask for more, or keep fewer"
        )
    return replace(request, frames=frames, keep=known, fps=request.fps or clip.fps)


def canvas(request: Request, on_event: OnEvent) -> Canvas:
    assert request.video is not None
    assert request.keep is not None
    video, mask = blank(request)
    whole = fitted(request, read.read_video(request.video, fps=request.fps), request.video, on_event)
    k = min(request.keep, request.shape.frames - 1)
    if request.backward:
        video[:, :, -k:], mask[:, :, -k:] = whole[:, :, :k], 1
        return Canvas(video, mask)
    video[:, :, :k], mask[:, :, :k] = whole[:, :, -k:], 1
    if request.loop:
        video[:, :, -1], mask[:, :, -1] = video[:, :, 0], 1
    return Canvas(video, mask)
