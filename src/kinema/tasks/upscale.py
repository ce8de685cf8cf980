"""Larger: a clip that there is, enlarged by guidance (VDM, section 3.2), with new frames between its own if wanted."""

from __future__ import annotations

from kinema.canvas import Canvas, LowResolution
from kinema.events import OnEvent
from kinema.media.timing import RATES
from kinema.schema import MAX_FRAMES, BadRequest, Request, Shape
from kinema.tasks.interpolate import heard
from kinema.tasks.known import heard_of, need, source, source_frames


def plan(request: Request) -> Request:
    """At ``every`` times the clip's rate and frames, unless told otherwise."""
    need(request, "video")
    every, probe = request.every or 1, source(request)
    frames, fps = request.frames or probe.frames * every, request.fps or probe.fps * every
    if frames > MAX_FRAMES:
        raise BadRequest(
            f"{request.video} would have {frames:,} frames, and a clip has at most {MAX_FRAMES:,}; ask for fewer with "
            "--frames"
        )
    if not RATES[0] <= fps <= RATES[1]:
        raise BadRequest(
            f"--every {every} makes {fps:g} fps of the {probe.fps:g} of {request.video}; use a smaller one"
        )
    return request.with_(frames=frames, fps=fps)


def factor(request: Request) -> int:
    """How many times the clip's sides the finished ones are: ``scale``, or the nearest whole number.

    The request has its size. Raises BadRequest where that is no enlargement, or no whole one.
    """
    shape, probe = request.shape, source(request)
    least = min(shape.height / probe.height, shape.width / probe.width)
    told = request.scale or max((n for n in range(2, MOST + 1) if n <= least + 0.5 and _whole(shape, n)), default=0)
    sizes = f"{request.video} is {probe.width}×{probe.height}, and {shape.width}×{shape.height} are asked for"
    if told < 2:
        raise BadRequest(
            f"{sizes}; upscale makes a clip at least twice as large: ask for a larger --width and --height"
        )
    if not _whole(shape, told):
        raise BadRequest(f"{sizes}; these sides are not {told} times whole ones: give another --scale or size")
    return told


MOST = 16
"""Times the sides."""


def _whole(shape: Shape, times: int) -> bool:
    return shape.height % times == 0 and shape.width % times == 0


def canvas(request: Request, on_event: OnEvent) -> Canvas:
    """Nothing is given; the small clip is known, fitted to the sides that the factor leaves."""
    times, every, shape = factor(request), request.every or 1, request.shape
    small = request.with_(height=shape.height // times, width=shape.width // times)
    video = source_frames(small, on_event, frames=-(-shape.frames // every))
    video = video.expand(request.clips, -1, -1, -1, -1).contiguous()
    told = LowResolution(video, times, every, request.super_resolution_weight)
    own = heard_of(request) if every == 1 else heard(request, source(request).fps)
    return Canvas(shape, small=told, heard=own)
