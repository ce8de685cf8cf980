"""Edit a clip: add noise according to ``strength`` and denoise with the prompt (SDEdit, arXiv 2108.01073)."""

from __future__ import annotations

import torch

from kinema.canvas import Canvas, Piece, Release
from kinema.events import OnEvent
from kinema.schema import Request
from kinema.tasks.inputs import require, sound_of, source_frames, with_source_timing


def plan(request: Request) -> Request:
    """Default to the clip's frame count and rate."""
    require(request, "video")
    return with_source_timing(request)


def canvas(request: Request, on_event: OnEvent) -> Canvas:
    source = source_frames(request, on_event, frames=request.shape.frames, fps=request.fps)
    # A source shorter than the requested clip holds its last frame.
    held = source[:, :, -1:].expand(-1, -1, request.shape.frames - source.shape[2], -1, -1)
    whole = torch.cat([source, held], dim=2)
    video = whole.expand(request.clips, -1, -1, -1, -1).contiguous()
    edited = Piece(video, torch.ones_like(video[:, :1]), Release("strength", request.strength))
    return Canvas(request.shape, (edited,), heard=sound_of(request))
