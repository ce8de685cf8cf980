"""Change a whole clip: it is noised to ``strength`` and denoised under the prompt (SDEdit, arXiv 2108.01073)."""

from __future__ import annotations

import torch

from kinema.canvas import Canvas, Piece, Release
from kinema.events import OnEvent
from kinema.schema import Request
from kinema.tasks.known import heard_of, natural, need, source_frames


def plan(request: Request) -> Request:
    """As long and as fast as the clip, unless told otherwise."""
    need(request, "video")
    return natural(request)


def canvas(request: Request, on_event: OnEvent) -> Canvas:
    source = source_frames(request, on_event, frames=request.shape.frames, fps=request.fps)
    # A source shorter than the clip asked for holds its last frame, so that every frame has a start.
    held = source[:, :, -1:].expand(-1, -1, request.shape.frames - source.shape[2], -1, -1)
    whole = torch.cat([source, held], dim=2)
    video = whole.expand(request.clips, -1, -1, -1, -1).contiguous()
    edited = Piece(video, torch.ones_like(video[:, :1]), Release("strength", request.strength))
    return Canvas(request.shape, (edited,), heard=heard_of(request))
