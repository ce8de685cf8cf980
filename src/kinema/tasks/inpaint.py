"""New content inside a region (or outside it: outpainting); the rest of the clip is known."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kinema.canvas import Canvas
from kinema.events import OnEvent
from kinema.schema import BadRequest, Request
from kinema.tasks.known import blank, frames_of, heard_of, natural, need, one_of, source, source_frames


def plan(request: Request) -> Request:
    """As long and as fast as the clip, unless told otherwise."""
    need(request, "video")
    if request.region is None and request.mask is None:
        raise BadRequest("inpaint needs a region (left,top,right,bottom in fractions) or a mask file")
    check_region(request)
    return natural(request)


def check_region(request: Request) -> None:
    one_of(request, "region", "mask")
    if request.outside and request.region is None and request.mask is None:
        raise BadRequest("outside needs the region or mask that it is the outside of")


def canvas(request: Request, on_event: OnEvent) -> Canvas:
    video, mask = blank(request)
    known = source_frames(request, on_event, frames=request.shape.frames, fps=request.fps)
    count = known.shape[2]
    video[:, :, :count] = known
    mask[:, :, :count] = 1 - wanted(request, on_event)[:, :, :count]
    return Canvas.of(video, mask, heard=heard_of(request))


def wanted(request: Request, on_event: OnEvent) -> Tensor:
    """1 where new content is wanted, 1×1×T×H×W, from the region or the mask file (at the clip's own rate).

    A mask clip is of the whole clip: where that is trimmed, the mask starts at the same second (its nearest frame), and
    must have begun to be shown by then: `BadRequest` otherwise. A picture is of every frame.
    """
    _, _, t, h, w = request.shape.bcthw
    if request.mask is not None:
        start = None if request.video is None or request.start is None else source(request, request.fps).begin
        light = frames_of(request, request.mask, on_event, frames=t, fps=request.fps, trim=(start, None))
        light = light.mean(1, keepdim=True)
        area = (light > 0).float()
        # A mask shorter than the clip holds its last picture.
        area = F.pad(area, (0, 0, 0, 0, 0, t - area.shape[2]), mode="replicate")
    else:
        assert request.region is not None
        left, top, right, bottom = request.region
        area = torch.zeros(1, 1, t, h, w)
        top_row, left_column = round(top * h), round(left * w)
        bottom_row, right_column = max(round(bottom * h), top_row + 1), max(round(right * w), left_column + 1)
        area[..., top_row:bottom_row, left_column:right_column] = 1
    return 1 - area if request.outside else area
