"""Decode frames of a video stream with PyAV: upright, RGB, square pixels, in presentation order."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from kinema.media.alpha import frames_with_alpha
from kinema.media.containers import open_container
from kinema.media.frames import ColourTags, DecodedFrame
from kinema.media.timing import DEFAULT_FPS, MAX_FRAME_PIXELS, Budget, Limits, Part, TimedFrame
from kinema.schema import BadRequest

_COVER = 0x400  # AV_DISPOSITION_ATTACHED_PIC
_SMALL_FRAME = 1_500_000
"""Pixels below which one decoding thread is faster than several on few cores (measured: five-fold at 480p)."""
_HELD_PIXELS = 2**26
"""Pixels over all frames that decoding threads may hold at the same time: eight threads for 4K, two for 8K."""
MAX_TRACKS = 16
"""Most sound tracks that are listed."""
MAX_PACKETS = 2**20
"""Per stream, including empty ones: ten hours at 29 frames per second, scanned in 15 seconds."""


@dataclass(frozen=True)
class Survey:
    """A video stream as described by its packets, without decoding; ``timed`` has no pixels.

    ``packets`` includes those hidden by an edit list. Height, width and rate are as stored, before rotation, square
    pixels or resampling. ``sound`` describes each sound track. ``keys`` are (time, time stamp on the stream's clock) of
    key frames.
    """

    codec: str
    packets: int
    height: int
    width: int
    rate: float
    timed: list[TimedFrame]
    sound: list[str]
    keys: list[tuple[float, int]]


def stream_frames(path: Path, kind: str, limits: Limits, part: Part) -> Iterator[TimedFrame]:
    """Yield frames of the best video stream, upright RGB, in presentation order.

    If the whole stream is requested, its frames are counted first, and too many are rejected before decoding.
    """
    import av

    budget = Budget.of(path.name, path.stat().st_size, "images" if kind == "gif" else "video")
    if part.frames is None and part.begin is None:
        found = survey(path, kind, limits)
        check_count(path, found.packets, limits)
        budget.check(found.packets, found.height, found.width)
    try:
        with open_container(path, kind, limits.frame) as container:
            stream = _best(path, container)
            codec = stream.codec_context
            limits.check_frame(path.name, codec.height, codec.width)
            codec.options = {"max_pixels": str(limits.frame)}
            _thread(codec)
            if part.seek is not None:
                _seek(container, stream, part.seek)
            frames = _timed(path, frames_with_alpha(container, stream, str(limits.frame)), stream, limits, budget)
            first = next(frames, None)
            if part.seek is None or (first is not None and first.time <= _time(part.seek, stream)):
                yield from frames if first is None else chain((first,), frames)
                return
    except av.FFmpegError as error:
        raise BadRequest(_broken(path, error)) from error
    except OverflowError as error:
        raise BadRequest(f"{path.name} has invalid time stamps") from error
    # Some demuxers seek too far; read from the beginning instead.
    yield from stream_frames(path, kind, limits, replace(part, seek=None))


def survey(path: Path, kind: str, limits: Limits) -> Survey:
    """Describe the best video stream by its packets, without decoding. Raises `BadRequest` as `stream_frames` does."""
    import av

    try:
        with open_container(path, kind, limits.frame) as container:
            stream = _best(path, container)
            codec = stream.codec_context
            limits.check_frame(path.name, codec.height, codec.width)
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            packets = _packets(path, container, stream)
            every = [
                (_stamp(p, kind), p.duration, p.is_discard, p.is_keyframe) for p in packets if _is_displayed(p, codec)
            ]
            displayed = sorted((stamp, hold or 0) for stamp, hold, hidden, _ in every if not hidden)
            keys = [stamp for stamp, _, _, key in every if key]
            timed = _without_pixels(displayed, stream)
            sound = [_sound(s.codec_context) for s in container.streams.audio[:MAX_TRACKS]]
            starts = [(_time(stamp, stream), stamp) for stamp in keys]
            return Survey(codec.name, len(every), codec.height, codec.width, rate, timed, sound, starts)
    except av.FFmpegError as error:
        raise BadRequest(_broken(path, error)) from error


def _packets(path: Path, container: Any, stream: Any) -> Iterator[Any]:
    for count, packet in enumerate(container.demux(stream), start=1):
        if count > MAX_PACKETS:
            raise BadRequest(f"{path.name} has more than {MAX_PACKETS:,} frames; cut it to the part you need")
        yield packet


def _without_pixels(displayed: list[tuple[int, int]], stream: Any) -> list[TimedFrame]:
    """Frames without pixels for each (time stamp, duration), at exactly the times that `_timed` gives them."""
    base, declared = stream.time_base or Fraction(0), float(stream.average_rate or 0)
    step = 1 / float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
    before, frames = float("-inf"), []
    for stamp, duration in displayed:
        time = _time(stamp, stream)
        time = before = time if time > before else before + step
        frames.append(TimedFrame(time, float(duration * base) or step, _no_pixels, float(base), declared))
    return frames


def _time(stamp: int, stream: Any) -> float:
    """Seconds since the start of the stream."""
    base = stream.time_base or Fraction(0)
    return float(stamp * base) - float((stream.start_time or 0) * base)


def _stamp(packet: Any, kind: str) -> int:
    # avi stores no presentation times, and FFmpeg's guesses jump back and forth.
    stamp = packet.dts if kind == "avi" or packet.pts is None else packet.pts
    return 0 if stamp is None else int(stamp)


def _is_displayed(packet: Any, codec: Any) -> bool:
    """Whether a packet has a displayed frame; VP8's first byte has a bit for that (RFC 6386, 9.1)."""
    return packet.size > 0 and (codec.name != "vp8" or bool(bytes(packet)[0] & 0x10))


def _sound(codec: Any) -> str:
    """Describe a track, e.g. "aac, 2 channels, 44,100 Hz"; "unknown" if FFmpeg has no decoder for it."""
    if codec is None:
        return "unknown"
    return f"{codec.name}, {codec.channels} channel{'s' * (codec.channels != 1)}, {codec.sample_rate:,} Hz"


def _thread(codec: Any) -> None:
    """Use one thread for small frames; for large ones, as many as can hold their frames at the same time."""
    pixels = codec.height * codec.width
    codec.thread_type = "NONE" if pixels < _SMALL_FRAME else "AUTO"
    if pixels >= _SMALL_FRAME:
        codec.thread_count = max(1, min(os.cpu_count() or 1, 16, _HELD_PIXELS // pixels))


def _no_pixels() -> np.ndarray:
    raise RuntimeError("this frame was counted but not decoded")


def _best(path: Path, container: Any) -> Any:
    """Return the first of the streams with the largest frames, ignoring cover art."""
    streams = [s for s in container.streams.video if s.codec_context and not int(s.disposition) & _COVER]
    if not streams:
        raise BadRequest(f"{path.name} contains no video stream (only sound or data)")
    return max(streams, key=lambda s: s.codec_context.height * s.codec_context.width)


def _seek(container: Any, stream: Any, target: int) -> None:
    """Seek to the key frame before ``target``; a container without an index is read from the beginning."""
    import av

    with contextlib.suppress(av.FFmpegError):
        container.seek(target, stream=stream)


def _timed(
    path: Path, frames: Iterator[tuple[Any, Any]], stream: Any, limits: Limits, budget: Budget
) -> Iterator[TimedFrame]:
    container, ratio = stream.container.format.name, float(stream.sample_aspect_ratio or 1) or 1.0
    step = 1 / float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
    origin = float((stream.start_time or 0) * stream.time_base) if stream.time_base else 0.0
    before, clock = float("-inf"), float(stream.time_base or 0)
    declared = float(stream.average_rate or 0)
    decoder = stream.codec_context.name
    tags = ColourTags.of(stream.codec_context)  # read now: decoders overwrite the container's tags
    for count, (frame, alpha) in enumerate(frames, start=1):
        # Frames skipped by ``start`` or ``fps`` are decoded too, so decoding needs its own limit.
        check_count(path, count, limits)
        budget.take(frame.height, frame.width)
        limits.check_frame(path.name, frame.height, round(frame.width * max(1.0, ratio if ratio < 10 else 1.0)))
        stamp = frame.dts if container == "avi" else frame.pts  # as in `_stamp`
        time = before + step if stamp is None else float(stamp * frame.time_base) - origin
        time = before = time if time > before else before + step
        hold = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else step
        decoded = DecodedFrame(path.name, frame, ColourTags.of(frame).over(tags), ratio, alpha, decoder)
        yield TimedFrame(time, hold, decoded.pixels, clock, declared, decoded.look.note, decoded.nature)


def check_count(path: Path, frames: int, limits: Limits) -> None:
    """Reject decoding of more than sixteen times the frames that may be kept."""
    if frames > 16 * limits.frames:
        raise BadRequest(f"{path.name} has more than {16 * limits.frames:,} frames; cut it to the part you need")


def _broken(path: Path, error: Exception) -> str:
    import av

    if isinstance(error, av.ArgumentError) and "max_pixels" in str(error):
        return f"{path.name} has frames of more than {MAX_FRAME_PIXELS:,} pixels; --max-pixels raises that"
    return f"{path.name} cannot be decoded: it is damaged, cut short, or not a video"
