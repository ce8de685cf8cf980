"""Inpaint a region of a clip, or outpaint with ``outside``; the rest of the clip is given."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kinema.canvas import Canvas
from kinema.events import OnEvent
from kinema.media.colour import to_uint8
from kinema.media.flow import carried
from kinema.schema import BadRequest, Request
from kinema.tasks.inputs import (
    blank,
    frames_of,
    refuse_both,
    require,
    sound_of,
    source,
    source_frames,
    with_source_timing,
)


def plan(request: Request) -> Request:
    """Default to the clip's frame count and rate."""
    require(request, "video")
    if request.region is None and request.mask is None and not request.masks:
        raise BadRequest(
            "inpaint needs a region (left,top,right,bottom as fractions of the frame), a mask file, or masks painted "
            "for frames"
        )
    check_region(request)
    return with_source_timing(request)


def check_region(request: Request) -> None:
    refuse_both(request, "region", "mask", "masks")
    if request.outside and request.region is None and request.mask is None and not request.masks:
        raise BadRequest("--outside needs a region or mask: give one, or leave --outside out")


def canvas(request: Request, on_event: OnEvent) -> Canvas:
    video, mask = blank(request)
    known = source_frames(request, on_event, frames=request.shape.frames, fps=request.fps)
    count = known.shape[2]
    video[:, :, :count] = known
    painted = painted_area(request, known[:, :, :count], on_event) if request.masks else None
    area = generated_area(request, on_event)[:, :, :count] if painted is None else painted
    mask[:, :, :count] = 1 - area
    return Canvas.of(video, mask, heard=sound_of(request))


def generated_area(request: Request, on_event: OnEvent) -> Tensor:
    """Return the mask of new content, 1×1×T×H×W, from the region or the mask file.

    A mask image applies to every frame. A mask clip is resampled to the clip's rate and belongs to the untrimmed clip:
    it starts at the same second. Raises `BadRequest` if it ends before that.
    """
    _, _, t, h, w = request.shape.bcthw
    if request.mask is not None:
        start = None if request.video is None or request.start is None else source(request, request.fps).begin
        light = frames_of(request, request.mask, on_event, frames=t, fps=request.fps, trim=(start, None))
        light = light.mean(1, keepdim=True)
        area = (light > 0).float()
        # A mask shorter than the clip holds its last frame.
        area = F.pad(area, (0, 0, 0, 0, 0, t - area.shape[2]), mode="replicate")
    else:
        assert request.region is not None
        left, top, right, bottom = request.region
        area = torch.zeros(1, 1, t, h, w)
        top_row, left_column = round(top * h), round(left * w)
        bottom_row, right_column = max(round(bottom * h), top_row + 1), max(round(right * w), left_column + 1)
        area[..., top_row:bottom_row, left_column:right_column] = 1
    return 1 - area if request.outside else area


def painted_area(request: Request, known: Tensor, on_event: OnEvent) -> Tensor:
    """Return the mask of new content from masks painted for some frames, carried to all frames of ``known`` by optical
    flow (`kinema.media.flow`), 1×1×T×H×W. Raises `BadRequest` for frames beyond the clip.
    """
    last = known.shape[2] - 1
    if beyond := [frame for frame in request.masks if int(frame) > last]:
        raise BadRequest(f"mask at {beyond[0]} is beyond the end of the clip; expected 0 to {last}")
    painted = {}
    for frame, file in request.masks.items():
        light = frames_of(request, file, on_event, frames=1).mean(1)[0, 0]
        painted[int(frame)] = (light > 0).numpy()
    area = torch.from_numpy(carried(painted, to_uint8(known[:1])[0]))[None, None].float()
    return 1 - area if request.outside else area
