"""Alpha that a webm holds beside its colours: a second VP8 or VP9 stream, whose luma it is, in each packet's additions.

The decoders of libvpx join the two, but allocate what a frame asks for before anybody can count it. So both streams
are decoded by FFmpeg's own decoders, which keep to ``max_pixels``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

_ADDITION = "matroska_block_additional"
_ALPHA = (1).to_bytes(8, "big")
"""BlockAddID of alpha, ahead of its bytes."""


def decoded(container: Any, stream: Any, max_pixels: str) -> Iterator[tuple[Any, Any]]:
    """Frames of a stream in order, each with the frame that holds its alpha, or None: where none is told or legible."""
    from av import CodecContext

    name = stream.codec_context.name
    if name not in ("vp8", "vp9") or stream.metadata.get("alpha_mode") != "1":
        yield from ((frame, None) for frame in container.decode(stream))
        return
    beside = CodecContext.create(name, "r")
    beside.options, beside.thread_type = {"max_pixels": max_pixels}, "NONE"
    waiting: dict[int | None, Any] = {}
    for packet in container.demux(stream):
        for alpha in _alphas(beside, packet):
            waiting[alpha.pts] = alpha
        for frame in packet.decode():
            yield frame, waiting.pop(frame.pts, None)
            # Those of frames that were never shown would pile up.
            waiting = {pts: a for pts, a in waiting.items() if pts is not None and pts > (frame.pts or 0)}


def _alphas(decoder: Any, packet: Any) -> list[Any]:
    """The alpha that comes with a packet; damaged alpha is none, and its frame is shown whole."""
    import av

    addition = _addition(packet)
    if not addition.startswith(_ALPHA) or len(addition) == len(_ALPHA):
        return []
    inner = av.Packet(addition[len(_ALPHA) :])
    inner.pts, inner.dts, inner.time_base = packet.pts, packet.dts, packet.time_base
    with contextlib.suppress(av.FFmpegError):
        return list(decoder.decode(inner))
    return []


def _addition(packet: Any) -> bytes:
    return bytes(packet.get_sidedata(_ADDITION)) if packet.has_sidedata(_ADDITION) else b""
