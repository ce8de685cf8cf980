"""Frames between: every k-th frame is known, or the two ends."""

from __future__ import annotations

from kinema.canvas import Canvas, SoundSource
from kinema.events import Note, OnEvent
from kinema.media.timing import RATES
from kinema.schema import MAX_FRAMES, BadRequest, Request
from kinema.tasks.known import blank, first_frame, heard_of, source, source_frames

SAME_SPEED = 1e-3
"""By how much a speed may be off: 29.97 for 30000/1001 is, and a second in a thousand is not heard."""


def plan(request: Request) -> Request:
    """From a clip: ``every - 1`` new frames between neighbours, at ``every`` times its rate."""
    if request.video is None:
        if request.image is None or request.last_image is None:
            raise BadRequest("interpolate needs a video, or an image and a last_image: give their files")
        if request.every is not None:
            raise BadRequest("interpolate between two pictures makes no use of every; frames says how many")
        if request.start is not None or request.end is not None:
            raise BadRequest("start and end trim a video, and interpolate has two pictures here: leave them out")
        return request
    if request.image is not None or request.last_image is not None:
        raise BadRequest("interpolate takes a video, or an image and a last_image, not both")
    every = request.every or 2
    probe = source(request)
    if probe.frames < 2:
        part = "" if request.start is None and request.end is None else " between its start and end"
        raise BadRequest(f"{request.video} has {probe.frames} frame{part}; interpolate needs two or more")
    frames, fps = request.frames or (probe.frames - 1) * every + 1, request.fps or probe.fps * every
    name = request.video
    if frames > MAX_FRAMES:
        raise BadRequest(
            f"--every {every} would turn the {probe.frames:,} frames of {name} into {frames:,}, and a clip has at most "
            f"{MAX_FRAMES:,}; use a smaller --every, or take a part of it with --start and --end"
        )
    if fps > RATES[1]:
        raise BadRequest(
            f"--every {every} would turn the {probe.fps:g} fps of {name} into {fps:g}, and at most {RATES[1]:g} can be "
            f"written; use a smaller --every, or give --fps ({probe.fps:g} plays it {every} times slower)"
        )
    return request.with_(every=every, frames=frames, fps=fps)


def canvas(request: Request, on_event: OnEvent) -> Canvas:
    video, mask = blank(request)
    if request.video is None:
        assert request.image is not None
        assert request.last_image is not None
        video[:, :, :1] = first_frame(request, request.image, on_event)
        video[:, :, -1:] = first_frame(request, request.last_image, on_event)
        mask[:, :, [0, -1]] = 1
        return Canvas.of(video, mask)
    places = range(0, request.shape.frames, request.every or 2)
    known = source_frames(request, on_event, frames=len(places))
    probe = source(request)
    left = probe.frames - known.shape[2]
    if left > 0:
        on_event(Note(f"the last {left} frames of {request.video} do not fit; ask for more --frames to use them"))
    at = list(places)[: known.shape[2]]
    video[:, :, at], mask[:, :, at] = known, 1
    return Canvas.of(video, mask, heard=heard(request, probe.fps))


def heard(request: Request, own_fps: float) -> SoundSource:
    """The clip's sound, where it plays as fast as it was: at ``every`` times its own rate."""
    assert request.fps is not None
    speed = request.fps / (own_fps * (request.every or 2))
    if abs(speed - 1) < SAME_SPEED:
        return heard_of(request)
    told = f"{1 / speed:.3g} times slower" if speed < 1 else f"{speed:.3g} times faster"
    return heard_of(request, unfit=f"the clip plays {told} than it was recorded")
