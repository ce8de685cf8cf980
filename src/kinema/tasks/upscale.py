"""Upscale a clip by guidance (VDM, section 3.2), optionally with new frames in between."""

from __future__ import annotations

from kinema.canvas import Canvas, LowResolution
from kinema.events import OnEvent
from kinema.media.timing import RATES
from kinema.schema import MAX_FRAMES, BadRequest, Request, Shape
from kinema.tasks.inputs import require, sound_of, source, source_frames
from kinema.tasks.interpolate import sound_at_speed


def plan(request: Request) -> Request:
    """Default to ``every`` times the clip's rate and frame count."""
    require(request, "video")
    every, probe = request.every or 1, source(request)
    frames, fps = request.frames or probe.frames * every, request.fps or probe.fps * every
    if frames > MAX_FRAMES:
        raise BadRequest(
            f"{request.video} would have {frames:,} frames; expected at most {MAX_FRAMES:,}: ask for fewer --frames"
        )
    if not RATES[0] <= fps <= RATES[1]:
        raise BadRequest(
            f"--every {every} would turn the {probe.fps:g} fps of {request.video} into {fps:g}; expected at most "
            f"{RATES[1]:g}: use a smaller --every"
        )
    return request.with_(frames=frames, fps=fps)


def factor(request: Request) -> int:
    """Return the enlargement factor of the sides: ``scale``, or the nearest whole number.

    The request must have its size. Raises BadRequest if the factor is below 2 or does not divide the sides.
    """
    shape, probe = request.shape, source(request)
    ratio = min(shape.height / probe.height, shape.width / probe.width)
    times = request.scale or max((n for n in range(2, MOST + 1) if n <= ratio + 0.5 and _whole(shape, n)), default=0)
    sizes = f"{request.video} is {probe.width}×{probe.height} and the output {shape.width}×{shape.height}"
    if times < 2:
        raise BadRequest(f"{sizes}; expected at least twice the sides: ask for a larger --width and --height")
    if not _whole(shape, times):
        raise BadRequest(f"{sizes}, whose sides are not multiples of {times}: give another --scale or size")
    return times


MOST = 16
"""Maximum enlargement factor."""


def _whole(shape: Shape, times: int) -> bool:
    return shape.height % times == 0 and shape.width % times == 0


def canvas(request: Request, on_event: OnEvent) -> Canvas:
    """Return an empty canvas with the small clip, fitted to the output size divided by the factor."""
    times, every, shape = factor(request), request.every or 1, request.shape
    small = request.with_(height=shape.height // times, width=shape.width // times)
    video = source_frames(small, on_event, frames=-(-shape.frames // every))
    video = video.expand(request.clips, -1, -1, -1, -1).contiguous()
    low = LowResolution(video, times, every, request.super_resolution_weight)
    sound = sound_of(request) if every == 1 else sound_at_speed(request, source(request).fps)
    return Canvas(shape, small=low, heard=sound)
