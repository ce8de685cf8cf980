"""Alpha in webm files: a second VP8 or VP9 stream in each packet's block additions, whose luma is the alpha.

libvpx's decoders combine the two streams, but allocate whatever size a frame declares before it can be checked. Both
streams are therefore decoded by FFmpeg's native decoders, which enforce ``max_pixels``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

_ADDITION = "matroska_block_additional"
_ALPHA = (1).to_bytes(8, "big")
"""BlockAddID of alpha, which precedes the alpha data."""


def frames_with_alpha(container: Any, stream: Any, max_pixels: str) -> Iterator[tuple[Any, Any]]:
    """Yield the frames of a stream in order, each with its alpha frame; None if alpha is missing or damaged."""
    from av import CodecContext

    name = stream.codec_context.name
    if name not in ("vp8", "vp9") or stream.metadata.get("alpha_mode") != "1":
        yield from ((frame, None) for frame in container.decode(stream))
        return
    alpha_decoder = CodecContext.create(name, "r")
    alpha_decoder.options, alpha_decoder.thread_type = {"max_pixels": max_pixels}, "NONE"
    waiting: dict[int | None, Any] = {}
    for packet in container.demux(stream):
        for alpha in _alphas(alpha_decoder, packet):
            waiting[alpha.pts] = alpha
        for frame in packet.decode():
            yield frame, waiting.pop(frame.pts, None)
            # Alpha of frames that are never displayed would pile up.
            waiting = {pts: a for pts, a in waiting.items() if pts is not None and pts > (frame.pts or 0)}


def _alphas(decoder: Any, packet: Any) -> list[Any]:
    """Decode the alpha in a packet; damaged alpha is discarded and its frame shown opaque."""
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
