"""Interpolate between the frames of a clip or between two images."""

from __future__ import annotations

from kinema.canvas import Canvas, SoundSource
from kinema.events import Note, OnEvent
from kinema.media.timing import RATES
from kinema.schema import MAX_FRAMES, BadRequest, Request
from kinema.tasks.inputs import blank, first_frame, sound_of, source, source_frames

SAME_SPEED = 1e-3
"""Relative tolerance of the speed: 29.97 passes for 30000/1001, and the difference is inaudible."""


def plan(request: Request) -> Request:
    """Check the inputs. A clip gets ``every - 1`` new frames between neighbours, at ``every`` times its rate."""
    if request.video is None:
        if request.image is None or request.last_image is None:
            raise BadRequest("interpolate needs a video, or an image and a last image (--last-image): give their files")
        if request.every is not None:
            raise BadRequest("--every does not apply between two images: give the number of frames with --frames")
        if request.start is not None or request.end is not None:
            raise BadRequest("--start and --end apply to a video, not to two images: leave them out")
        return request
    if request.image is not None or request.last_image is not None:
        raise BadRequest("interpolate takes either a video or an image and a last image (--last-image), not both")
    every = request.every or 2
    probe = source(request)
    if probe.frames < 2:
        part = "" if request.start is None and request.end is None else " between its start and end"
        raise BadRequest(f"{request.video} has {probe.frames} frame{part}; interpolate needs two or more")
    frames, fps = request.frames or (probe.frames - 1) * every + 1, request.fps or probe.fps * every
    name = request.video
    if frames > MAX_FRAMES:
        raise BadRequest(
            f"--every {every} would turn the {probe.frames:,} frames of {name} into {frames:,}; expected at most "
            f"{MAX_FRAMES:,}: use a smaller --every, or a part of the clip with --start and --end"
        )
    if fps > RATES[1]:
        raise BadRequest(
            f"--every {every} would turn the {probe.fps:g} fps of {name} into {fps:g}; expected at most {RATES[1]:g}: "
            f"use a smaller --every, or give --fps ({probe.fps:g} plays {every} times slower)"
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
    return Canvas.of(video, mask, heard=sound_at_speed(request, probe.fps))


def sound_at_speed(request: Request, source_fps: float) -> SoundSource:
    """Return the clip's sound; it is unfit unless the output plays at the recorded speed (``every`` times the rate)."""
    assert request.fps is not None
    speed = request.fps / (source_fps * (request.every or 2))
    if abs(speed - 1) < SAME_SPEED:
        return sound_of(request)
    how = f"{1 / speed:.3g} times slower" if speed < 1 else f"{speed:.3g} times faster"
    return sound_of(request, unfit=f"the clip plays {how} than it was recorded")
