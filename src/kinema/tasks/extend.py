"""Longer: a clip's frames are known and new ones follow (or lead to it, or close a loop)."""

from __future__ import annotations

from kinema.media import read
from kinema.schema import BadRequest, Canvas, Note, OnEvent, Request
from kinema.tasks.known import blank, frames_of, need, one_of

NEW_FRAMES = 12


def plan(request: Request) -> Request:
    """``frames`` counts the whole result; left out, `NEW_FRAMES` are added to the clip (or to ``keep`` of it)."""
    need(request, "video")
    assert request.video is not None
    one_of(request, "backward", "loop")
    probe = read.probe(request.video, fps=request.fps)
    known = min(probe.frames, request.keep or probe.frames)
    frames = request.frames or known + NEW_FRAMES
    if frames <= known:
        raise BadRequest(
            f"{request.video} has {known} frames to keep and {frames} are asked for in all; ask for more, or keep fewer"
        )
    return request.with_(frames=frames, keep=known, fps=request.fps or probe.fps)


def canvas(request: Request, on_event: OnEvent) -> Canvas:
    assert request.video is not None
    assert request.keep is not None
    video, mask = blank(request)
    k = request.keep
    part = {"frames": k} if request.backward else {"last": k}
    known = frames_of(request, request.video, on_event, fps=request.fps, **part)
    k = known.shape[2]
    whole = read.probe(request.video, fps=request.fps).frames
    if whole > k:
        which = "first" if request.backward else "last"
        on_event(Note(f"the {which} {k} of {whole} frames of {request.video} are kept, and the rest left out"))
    if request.backward:
        video[:, :, -k:], mask[:, :, -k:] = known, 1
        return Canvas(video, mask)
    video[:, :, :k], mask[:, :, :k] = known, 1
    if request.loop:
        video[:, :, -1], mask[:, :, -1] = video[:, :, 0], 1
    return Canvas(video, mask)
