"""Change a whole clip: it is noised to ``strength`` and denoised under the prompt (SDEdit, arXiv 2108.01073)."""

from __future__ import annotations

from dataclasses import replace

import torch

from kinema.schema import Canvas, Heard, OnEvent, Request
from kinema.tasks.known import blank, frames_of, natural, need


def plan(request: Request) -> Request:
    """As long and as fast as the clip, unless told otherwise."""
    need(request, "video")
    return natural(request)


def canvas(request: Request, on_event: OnEvent) -> Canvas:
    assert request.video is not None
    video, mask = blank(request)
    source = frames_of(request, request.video, on_event, frames=request.shape.frames, fps=request.fps)
    # A source shorter than the clip asked for holds its last frame, so that every frame has a start.
    held = source[:, :, -1:].expand(-1, -1, request.shape.frames - source.shape[2], -1, -1)
    whole = torch.cat([source, held], dim=2)
    edited = Canvas(video, mask, heard=Heard(request.video))
    return replace(edited, source=whole.expand_as(video).contiguous(), strength=request.strength)
