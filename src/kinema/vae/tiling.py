"""Encode and decode in parts to save memory: a few images at a time, which is exact, or in blended tiles.

A tile lacks the context beyond its border, so it is least accurate there; blending gives the border the lowest
weight and hides seams. Works along any axis of B×C×T×H×W latents, and nested along several.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from kinema.cancel import checkpoint

Decode = Callable[[Tensor], Tensor]
"""``decode(z B×c×T×h×w) -> pixels B×3×T×H×W``."""

FRAMES, ROWS, COLUMNS = 2, 3, 4
MAX_ELEMENTS = 2**22
"""Limit on the elements of the largest map of a spatial layer when no gradient is needed."""


def by_images(layer: Callable[[Tensor], Tensor], x_NCHW: Tensor, growth: int = 1, *, overwrite: bool = False) -> Tensor:
    """Apply a spatial layer to a few images at a time if no gradient is recorded.

    ``growth`` is the size of its largest map relative to x. With ``overwrite``, the output may overwrite the input if
    their shapes agree.
    """
    checkpoint()
    few = max(1, MAX_ELEMENTS // (growth * x_NCHW[0].numel()))
    if torch.is_grad_enabled() or len(x_NCHW) <= few:
        return layer(x_NCHW)
    out = x_NCHW if overwrite else None
    parts = range(0, len(x_NCHW), few)
    for at in parts[:2] if x_NCHW.is_meta else parts:  # rehearsed: others need no more memory than the second
        checkpoint()
        part = layer(x_NCHW[at : at + few])
        if out is None or out.shape[1:] != part.shape[1:]:
            shape = (len(x_NCHW), *part.shape[1:])
            out = torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=torch.channels_last)
        if part.data_ptr() != out[at].data_ptr():  # unless the layer worked in place
            out[at : at + few] = part
        del part  # free it before the next is computed
    return cast(Tensor, out)


def starts(total: int, size: int, overlap: int) -> list[int]:
    """Return the starts of parts of ``size`` that cover ``total``, neighbours sharing at least ``overlap``.

    With an overlap, the last part is moved back to full size; without one it is shorter, as in diffusers.
    """
    if size >= total:
        return [0]
    begin = list(range(0, total - overlap, size - overlap))
    return [min(at, total - size) for at in begin] if overlap else begin


def decode_blended(decode: Decode, z_BCTHW: Tensor, axis: int, size: int, overlap: int, stride: float = 1) -> Tensor:
    """Decode latents ``size`` cells at a time along ``axis``, where a cell has ``stride`` pixels, and blend the parts.

    Encodes pixels likewise with a ``stride`` of 1/8, if sizes, starts and overlap are multiples of 8.

    The k-th of o shared pixels has weight ``k / (o + 1)`` in the later part. Raises ValueError unless the overlap is
    smaller than a part.
    """
    if not 0 <= overlap < size:
        raise ValueError(f"overlap is {overlap}; expected 0 to {size - 1}, less than the part size")
    total = z_BCTHW.shape[axis]
    if size >= total:
        checkpoint()
        return decode(z_BCTHW)
    out: Tensor | None = None
    done = 0
    parts = starts(total, size, overlap)
    if z_BCTHW.is_meta and overlap:  # rehearsed: all parts have one size, and none needs more memory than the second
        parts = parts[:2]
    for start in parts:
        checkpoint()
        part = decode(z_BCTHW.narrow(axis, start, min(size, total - start)))
        if out is None:
            shape = list(part.shape)
            shape[axis] = int(total * stride)
            out = part.new_empty(shape)
        begin = int(start * stride)
        shared = done - begin
        if shared:
            weight = torch.arange(1, shared + 1, device=part.device, dtype=part.dtype) / (shared + 1)
            weight = weight.reshape(-1, *(1,) * (part.ndim - 1 - axis))
            out.narrow(axis, begin, shared).lerp_(part.narrow(axis, 0, shared), weight)
        rest = part.shape[axis] - shared
        out.narrow(axis, begin + shared, rest).copy_(part.narrow(axis, shared, rest))
        done = begin + part.shape[axis]
    assert out is not None
    return out


def decode_tiled(decode: Decode, z_BCTHW: Tensor, tile: int, stride: int) -> Tensor:
    """Decode latents in square tiles of ``tile`` cells per side with a quarter overlap."""
    share = tile // 4

    def row(z: Tensor) -> Tensor:
        return decode_blended(decode, z, COLUMNS, tile, share, stride)

    return decode_blended(row, z_BCTHW, ROWS, tile, share, stride)
