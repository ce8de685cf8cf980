"""Extend a clip with new frames after it, before it (``backward``), or back to its start (``loop``)."""

from __future__ import annotations

from kinema.canvas import Canvas
from kinema.events import Note, OnEvent
from kinema.schema import MAX_FRAMES, BadRequest, Request
from kinema.tasks.inputs import blank, refuse_both, require, sound_of, source, source_frames

NEW_FRAMES = 12


def plan(request: Request) -> Request:
    """Default to `NEW_FRAMES` after the kept frames; ``frames`` counts the whole result."""
    require(request, "video")
    refuse_both(request, "backward", "loop")
    probe = source(request, request.fps)
    known = request.keep or probe.frames
    if known > probe.frames:
        part = "" if (request.start, request.end, request.fps) == (None, None, None) else "the used part of "
        raise BadRequest(f"--keep is {known}; expected at most the {probe.frames} frames of {part}{request.video}")
    frames = request.frames or known + NEW_FRAMES
    if request.frames is None and frames > MAX_FRAMES:
        raise BadRequest(
            f"{request.video} has {known:,} frames to keep, which with the new frames exceeds the maximum of "
            f"{MAX_FRAMES:,}; keep fewer with --keep"
        )
    if frames <= known:
        raise BadRequest(
            f"frames is {frames}, but {known} frames of {request.video} are kept; ask for more --frames or a smaller "
            "--keep"
        )
    return request.with_(frames=frames, keep=known, fps=request.fps or probe.fps)


def canvas(request: Request, on_event: OnEvent) -> Canvas:
    assert request.keep is not None
    assert request.fps is not None
    video, mask = blank(request)
    k, fps = request.keep, request.fps
    part = {"frames": k} if request.backward else {"last": k}
    known = source_frames(request, on_event, fps=fps, **part)
    k = known.shape[2]
    whole = source(request, fps).frames
    if whole > k:
        which = "first" if request.backward else "last"
        on_event(Note(f"kept the {which} {k} of {whole} frames of {request.video}; the others are not used"))
    if request.backward:
        video[:, :, -k:], mask[:, :, -k:] = known, 1
        return Canvas.of(video, mask, heard=sound_of(request, 0.0, k / fps, (request.shape.frames - k) / fps))
    video[:, :, :k], mask[:, :, :k] = known, 1
    if request.loop:
        video[:, :, -1], mask[:, :, -1] = video[:, :, 0], 1
    return Canvas.of(video, mask, heard=sound_of(request, (whole - k) / fps, k / fps))
