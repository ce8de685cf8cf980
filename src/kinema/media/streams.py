"""Frames of a video stream through PyAV: upright, RGB, square pixels, in order of time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kinema.media.alpha import decoded
from kinema.media.frames import Shown, Tags
from kinema.media.timing import DEFAULT_FPS, MAX_FRAME_PIXELS, Limits, Timed
from kinema.schema import BadRequest

_COVER = 0x400  # AV_DISPOSITION_ATTACHED_PIC
_SMALL_FRAME = 1_500_000
"""Pixels below which one decoding thread beats several on few cores (measured: five-fold at 480p)."""


def stream_frames(path: Path, kind: str, limits: Limits, start: float) -> Iterator[Timed]:
    """Frames of the best video stream, upright and in RGB, in order of time."""
    import av

    most = str(min(MAX_FRAME_PIXELS, limits.pixels))
    try:
        # Opening may decode a frame to learn its format, so the limit has to be there before it.
        with av.open(str(path), format=kind, options={"max_pixels": most}, metadata_errors="replace") as container:
            stream = _best(container)
            if stream is None:
                raise BadRequest(f"{path.name} holds no video stream (only sound or data)")
            codec = stream.codec_context
            limits.check_frame(path.name, codec.height, codec.width)
            codec.options = {"max_pixels": most}
            codec.thread_type = "NONE" if codec.height * codec.width < _SMALL_FRAME else "AUTO"
            if start > 0 and stream.time_base:
                origin = stream.start_time or 0
                _seek(container, stream, int(start / stream.time_base) + origin)
            yield from _timed(path, decoded(container, stream, most), stream, limits)
    except av.FFmpegError as error:
        raise BadRequest(_broken(path, error)) from error


def header(path: Path, kind: str) -> tuple[str, int, float, int, int]:
    """Codec, frames, frames per second, height and width of the best video stream; packets are counted, not decoded."""
    import av

    try:
        with av.open(str(path), format=kind, metadata_errors="replace") as container:
            stream = _best(container)
            if stream is None:
                raise BadRequest(f"{path.name} holds no video stream (only sound or data)")
            codec = stream.codec_context
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            frames = sum(1 for packet in container.demux(stream) if packet.size)
            return codec.name, frames, rate, codec.height, codec.width
    except av.FFmpegError as error:
        raise BadRequest(_broken(path, error)) from error


def _best(container: Any) -> Any:
    """The stream of the largest frames, the first of equals; a cover picture of a song is none."""
    streams = [s for s in container.streams.video if s.codec_context and not int(s.disposition) & _COVER]
    return max(streams, key=lambda s: s.codec_context.height * s.codec_context.width, default=None)


def _seek(container: Any, stream: Any, target: int) -> None:
    """To the key frame before ``target``; a container without an index is read from its beginning."""
    import av

    with contextlib.suppress(av.FFmpegError):
        container.seek(target, stream=stream)


def _timed(path: Path, frames: Iterator[tuple[Any, Any]], stream: Any, limits: Limits) -> Iterator[Timed]:
    container, ratio = stream.container.format.name, float(stream.sample_aspect_ratio or 1) or 1.0
    step = 1 / float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
    origin = float((stream.start_time or 0) * stream.time_base) if stream.time_base else 0.0
    before, clock = float("-inf"), float(stream.time_base or 0)
    declared = float(stream.average_rate or 0)
    decoder = stream.codec_context.name
    tags = Tags.of(stream.codec_context)  # now: decoders write what they find over the container's
    for count, (frame, alpha) in enumerate(frames, start=1):
        # A frame skipped by ``start`` or ``fps`` is decoded too, so decoding has a bound of its own.
        if count > 16 * limits.frames:
            raise BadRequest(
                f"{path.name} has more than {16 * limits.frames:,} frames; cut it to the part that is wanted"
            )
        # An avi stores no presentation times, and those made up for it jump back and forth.
        stamp = frame.dts if container == "avi" else frame.pts
        time = before + step if stamp is None else float(stamp * frame.time_base) - origin
        time = before = time if time > before else before + step
        hold = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else step
        shown = Shown(path.name, frame, Tags.of(frame).over(tags), ratio, alpha, decoder)
        yield Timed(time, hold, shown.pixels, clock, declared, shown.look.note)


def _broken(path: Path, error: Exception) -> str:
    import av

    if isinstance(error, av.ArgumentError) and "max_pixels" in str(error):
        return f"{path.name} has frames of more pixels than are read ({MAX_FRAME_PIXELS:,}, or max_pixels)"
    return f"{path.name} cannot be decoded: it is damaged, cut short, or not a video"
