"""Change a whole clip: it is noised to ``strength`` and denoised under the prompt (SDEdit, arXiv 2108.01073)."""

from __future__ import annotations

from dataclasses import replace

import torch

from kinema.schema import Canvas, OnEvent, Request
from kinema.tasks.known import blank, frames_of, need, need_prompt


def plan(request: Request) -> Request:
    need(request, "video")
    need_prompt(request)
    return request


def canvas(request: Request, on_event: OnEvent) -> Canvas:
    video, mask = blank(request)
    source = frames_of(request, on_event, request.shape.frames, request.fps)
    # A source shorter than the model's clip holds its last frame, so that every frame has a start.
    held = source[:, :, -1:].expand(-1, -1, request.shape.frames - source.shape[2], -1, -1)
    whole = source if source.shape[2] == request.shape.frames else torch.cat([source, held], dim=2)
    return replace(Canvas(video, mask), source=whole.expand_as(video).contiguous(), strength=request.strength)
