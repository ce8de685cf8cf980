"""What the tasks share: reading media onto a canvas of the settled size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kinema.media import read
from kinema.media.pictures import is_picture
from kinema.schema import BadRequest, Canvas, Clip, Note, OnEvent, Request


@dataclass(frozen=True)
class Task:
    """``plan(request) -> request`` before the model's defaults; ``canvas(request, on_event)`` after."""

    plan: Callable[[Request], Request]
    canvas: Callable[[Request, OnEvent], Canvas]


def need(request: Request, *names: str) -> None:
    """Refuse a request that lacks what its verb works on."""
    for name in names:
        if getattr(request, name) is None:
            raise BadRequest(f"{request.task} needs {'a' if name != 'image' else 'an'} {name}: give its file")


def need_prompt(request: Request) -> None:
    if not request.prompt.strip():
        example = "such as 'a red ball rolls right'"
        raise BadRequest(f"{request.task} needs a prompt, this one is empty; say what to show, {example}")


def blank(request: Request) -> tuple[Tensor, Tensor]:
    """An unknown video B×3×T×H×W and an empty mask B×1×T×H×W of the request's size."""
    b, _, t, h, w = request.shape.bcthw
    return torch.zeros(b, 3, t, h, w), torch.zeros(b, 1, t, h, w)


def media(path: str, frames: int) -> Clip:
    """A picture as a clip of one frame, or the first ``frames`` of a clip."""
    file = Path(path)
    if file.is_file() and is_picture(file):
        return Clip(read.read_image(file))
    return read.read_video(file, frames=frames)


def fitted(request: Request, clip: Clip, name: str, on_event: OnEvent) -> Tensor:
    """The clip's frames at the request's height and width, 1×3×T×H×W, saying what was cut."""
    video, said = read.fit(clip.video, request.shape.height, request.shape.width, request.fit)
    if said:
        on_event(Note(f"{name} {said}"))
    return video


def first_frame(request: Request, path: str, on_event: OnEvent) -> Tensor:
    """The picture, or the first frame of the clip, at ``path``: 1×3×1×H×W."""
    return fitted(request, media(path, frames=1), path, on_event)


def frames_of(request: Request, on_event: OnEvent, count: int | None = None, fps: float | None = None) -> Tensor:
    """At most ``count`` frames of ``request.video`` at ``fps``, fitted: 1×3×T×H×W."""
    assert request.video is not None
    clip = read.read_video(request.video, frames=count, fps=fps)
    return fitted(request, clip, request.video, on_event)
