"""Helpers shared by the tasks: checks, and reading media at the settled size."""

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
from kinema.media.images import is_image
from kinema.schema import MAX_FRAMES, BadRequest, Request, flag


@dataclass(frozen=True)
class Task:
    """``plan(request) -> request`` runs before the model's defaults, ``canvas(request, on_event)`` after."""

    plan: Callable[[Request], Request]
    canvas: Callable[[Request, OnEvent], Canvas]


def require(request: Request, *names: str) -> None:
    """Raise `BadRequest` if one of these inputs is missing."""
    for name in names:
        if getattr(request, name) is None:
            raise BadRequest(f"{request.task} needs {'a' if name != 'image' else 'an'} {name}: give its file")


def require_prompt(request: Request) -> None:
    if not request.prompt.strip() and not request.prompt_spans:
        raise BadRequest(f"the prompt is empty; {request.task} needs one, such as 'a red ball rolls right'")


def refuse_both(request: Request, *names: str) -> None:
    """Raise `BadRequest` if more than one of these fields is given."""
    given = [name for name in names if getattr(request, name) not in (None, False, {})]
    if len(given) > 1:
        raise BadRequest(f"{request.task} takes {' or '.join(map(flag, given))}, not both")


def blank(request: Request) -> tuple[Tensor, Tensor]:
    """Return a zero video B×3×T×H×W and a zero mask B×1×T×H×W of the request's size."""
    b, _, t, h, w = request.shape.bcthw
    return torch.zeros(b, 3, t, h, w), torch.zeros(b, 1, t, h, w)


def source(request: Request, fps: float | None = None) -> read.Probe:
    """Probe the request's clip, trimmed to its ``start`` and ``end``, and resampled to ``fps`` if given."""
    assert request.video is not None
    return read.probe(request.video, fps, request.start, request.end)


def source_frames(
    request: Request, on_event: OnEvent, *, frames: int | None = None, fps: float | None = None, last: int = 0
) -> Tensor:
    """Return `frames_of` the request's trimmed clip."""
    assert request.video is not None
    trim = (request.start, request.end)
    return frames_of(request, request.video, on_event, frames=frames, fps=fps, last=last, trim=trim)


def sound_of(
    request: Request, begin: float = 0.0, seconds: float | None = None, at: float = 0.0, unfit: str = ""
) -> SoundSource:
    """Return the sound of the request's trimmed clip, from its second ``begin``; see `SoundSource`."""
    assert request.video is not None
    if request.start is None and request.end is None:
        return SoundSource(request.video, begin, seconds, at, unfit)
    clip = source(request)
    begin += clip.begin
    limits = [each for each in (seconds, None if clip.end is None else clip.end - begin) if each is not None]
    return SoundSource(request.video, begin, min(limits, default=None), at, unfit)


def with_source_timing(request: Request) -> Request:
    """Fill in the clip's frame count and rate where the request has none."""
    probe = source(request, request.fps)
    if request.frames is None and probe.frames > MAX_FRAMES:
        raise BadRequest(
            f"{request.video} has {probe.frames:,} frames; expected at most {MAX_FRAMES:,}: use a part of it with "
            "--start and --end, or a lower rate with --fps"
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
    """Read an image or clip at the request's height and width, 1×3×T×H×W, and report cropping or padding as notes.

    A clip is trimmed to ``trim`` (start and end) and resampled to ``fps``; then its first ``frames`` or its ``last``
    frames are returned. Frames are fitted as they are decoded, so memory depends on the fitted size only.
    """
    height, width = request.shape.height, request.shape.width
    if Path(path).is_file() and is_image(Path(path)):
        video, note = read.fit(read.read_image(path), height, width, request.fit)
    else:
        size = (height, width, request.fit)
        start, end = trim
        video = read.read_video(path, start=start, end=end, frames=frames, fps=fps, size=size, last=last or None).video
        probe = read.probe(path) if trim == (None, None) else read.probe(path, fps, *trim)
        note = read.fit_note(height, width, probe.height, probe.width, request.fit)
        if probe.note:
            on_event(Note(f"{path} {probe.note}"))
    if note:
        on_event(Note(f"{path} {note}"))
    return video


def first_frame(request: Request, path: str, on_event: OnEvent, start: str | float | None = None) -> Tensor:
    """Read an image, or a clip's first frame from ``start``, 1×3×1×H×W, and report cropping or padding as notes."""
    if start is not None:
        return frames_of(request, path, on_event, frames=1, trim=(start, None))
    video, notes = read_first(path, (request.shape.height, request.shape.width, request.fit))
    for note in notes:
        on_event(Note(f"{path} {note}"))
    return video
