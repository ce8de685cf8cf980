"""What the tasks share: reading media onto a canvas of the settled size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kinema.canvas import Canvas, SoundSource
from kinema.events import Note, OnEvent
from kinema.media import read
from kinema.media.first import read_first
from kinema.media.pictures import is_picture
from kinema.schema import MAX_FRAMES, BadRequest, Request


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
    if not request.prompt.strip() and not request.prompt_spans:
        example = "such as 'a red ball rolls right'"
        raise BadRequest(f"{request.task} needs a prompt, this one is empty; say what to show, {example}")


def one_of(request: Request, *names: str) -> None:
    """Refuse a request that names two fields of which only one can be meant."""
    told = [name for name in names if getattr(request, name) not in (None, False)]
    if len(told) > 1:
        raise BadRequest(f"{request.task} takes {' or '.join(told)}, not both")


def blank(request: Request) -> tuple[Tensor, Tensor]:
    """An unknown video B×3×T×H×W and an empty mask B×1×T×H×W of the request's size."""
    b, _, t, h, w = request.shape.bcthw
    return torch.zeros(b, 3, t, h, w), torch.zeros(b, 1, t, h, w)


def source(request: Request, fps: float | None = None) -> read.Probe:
    """The clip that the request works on, trimmed to its ``start`` and ``end``; at ``fps`` where one is given."""
    assert request.video is not None
    return read.probe(request.video, fps, request.start, request.end)


def source_frames(
    request: Request, on_event: OnEvent, *, frames: int | None = None, fps: float | None = None, last: int = 0
) -> Tensor:
    """`frames_of` the clip that `source` describes."""
    assert request.video is not None
    trim = (request.start, request.end)
    return frames_of(request, request.video, on_event, frames=frames, fps=fps, last=last, trim=trim)


def heard_of(
    request: Request, begin: float = 0.0, seconds: float | None = None, at: float = 0.0, unfit: str = ""
) -> SoundSource:
    """The sound of the clip that `source` describes, of which second ``begin`` is heard at ``at``; see `SoundSource`."""
    assert request.video is not None
    if request.start is None and request.end is None:
        return SoundSource(request.video, begin, seconds, at, unfit)
    clip = source(request)
    begin += clip.begin
    most = [each for each in (seconds, None if clip.end is None else clip.end - begin) if each is not None]
    return SoundSource(request.video, begin, min(most, default=None), at, unfit)


def natural(request: Request) -> Request:
    """The request with the frame count and rate of its clip where it names none."""
    probe = source(request, request.fps)
    if request.frames is None and probe.frames > MAX_FRAMES:
        raise BadRequest(
            f"{request.video} has {probe.frames:,} frames, and a clip has at most {MAX_FRAMES:,}; "
            "take a part of it with --start and --end, or fewer frames a second with --fps"
        )
    return request.with_(frames=request.frames or probe.frames, fps=request.fps or probe.fps)


def frames_of(
    request: Request,
    path: str,
    on_event: OnEvent,
    *,
    frames: int | None = None,
    fps: float | None = None,
    last: int = 0,
    trim: tuple[str | float | None, str | float | None] = (None, None),
) -> Tensor:
    """Frames of a picture or clip, at the request's height and width: 1×3×T×H×W, saying what was cut away.

    The first ``frames``, or the ``last``, of what ``trim`` (a clip's start and end) leaves, at ``fps``; each is fitted
    as it is read, so that a long clip of large frames costs what its small version does.
    """
    height, width = request.shape.height, request.shape.width
    if Path(path).is_file() and is_picture(Path(path)):
        video, said = read.fit(read.read_image(path), height, width, request.fit)
    else:
        size = (height, width, request.fit)
        start, end = trim
        video = read.read_video(path, start=start, end=end, frames=frames, fps=fps, size=size, last=last or None).video
        probe = read.probe(path) if trim == (None, None) else read.probe(path, fps, *trim)
        said = read.fit_note(height, width, probe.height, probe.width, request.fit)
        if probe.note:
            on_event(Note(f"{path} {probe.note}"))
    if said:
        on_event(Note(f"{path} {said}"))
    return video


def first_frame(request: Request, path: str, on_event: OnEvent, start: str | float | None = None) -> Tensor:
    """The picture, or the clip's first frame from ``start`` on, at ``path``: 1×3×1×H×W, saying what was cut away."""
    if start is not None:
        return frames_of(request, path, on_event, frames=1, trim=(start, None))
    video, notes = read_first(path, (request.shape.height, request.shape.width, request.fit))
    for said in notes:
        on_event(Note(f"{path} {said}"))
    return video
