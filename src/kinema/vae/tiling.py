"""Coding in parts, for less memory: images a few at a time, which is exact, and parts that fade into each other.

A part of a clip or of a picture does not see what lies beyond it, so its rim is the least true of it; fading gives
the rim the least weight and leaves no seam. Works along any axis of B×C×T×H×W latents, and nested, along several.
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
AT_ONCE = 2**22
"""Numbers of the largest map that layers over space take at a time where no gradient is needed."""


def by_images(layer: Callable[[Tensor], Tensor], x_NCHW: Tensor, growth: int = 1, *, overwrite: bool = False) -> Tensor:
    """A layer over space, a few images at a time where no gradient is recorded.

    ``growth`` is how many times larger than x its maps are. With ``overwrite``, what comes out may take the place of
    what went in, where their shapes are the same.
    """
    checkpoint()
    few = max(1, AT_ONCE // (growth * x_NCHW[0].numel()))
    if torch.is_grad_enabled() or len(x_NCHW) <= few:
        return layer(x_NCHW)
    out = x_NCHW if overwrite else None
    for at in range(0, len(x_NCHW), few):
        checkpoint()
        made = layer(x_NCHW[at : at + few])
        if out is None or out.shape[1:] != made.shape[1:]:
            shape = (len(x_NCHW), *made.shape[1:])
            out = torch.empty(shape, dtype=made.dtype, device=made.device, memory_format=torch.channels_last)
        if made.data_ptr() != out[at].data_ptr():  # a layer may have done it already
            out[at : at + few] = made
        del made  # else it is held while the next is made
    return cast(Tensor, out)


def starts(total: int, size: int, overlap: int) -> list[int]:
    """Where parts of ``size`` begin that together cover ``total``, neighbours sharing ``overlap`` or more.

    With an overlap the last part is moved back to be whole; without one it is what is left, as diffusers has it.
    """
    if size >= total:
        return [0]
    begun = list(range(0, total - overlap, size - overlap))
    return [min(at, total - size) for at in begun] if overlap else begun


def faded(decode: Decode, z_BCTHW: Tensor, axis: int, size: int, overlap: int, stride: int = 1) -> Tensor:
    """Pixels of latents decoded ``size`` cells at a time along ``axis``; ``stride`` is the pixels of a cell there.

    The k-th of o shared pixels has weight ``k / (o + 1)`` in the later part. Raises ValueError for an overlap that
    is not smaller than a part.
    """
    if not 0 <= overlap < size:
        raise ValueError(f"parts of {size} cannot share {overlap}")
    total = z_BCTHW.shape[axis]
    if size >= total:
        checkpoint()
        return decode(z_BCTHW)
    out: Tensor | None = None
    done = 0
    for start in starts(total, size, overlap):
        checkpoint()
        part = decode(z_BCTHW.narrow(axis, start, min(size, total - start)))
        if out is None:
            shape = list(part.shape)
            shape[axis] = total * stride
            out = part.new_empty(shape)
        begin, shared = start * stride, done - start * stride
        if shared:
            weight = torch.arange(1, shared + 1, device=part.device, dtype=part.dtype) / (shared + 1)
            weight = weight.reshape(-1, *(1,) * (part.ndim - 1 - axis))
            out.narrow(axis, begin, shared).lerp_(part.narrow(axis, 0, shared), weight)
        rest = part.shape[axis] - shared
        out.narrow(axis, begin + shared, rest).copy_(part.narrow(axis, shared, rest))
        done = begin + part.shape[axis]
    assert out is not None
    return out


def tiled(decode: Decode, z_BCTHW: Tensor, tile: int, stride: int) -> Tensor:
    """Pixels of latents decoded in squares of ``tile`` cells, which share a quarter."""
    share = tile // 4

    def row(z: Tensor) -> Tensor:
        return faded(decode, z, COLUMNS, tile, share, stride)

    return faded(row, z_BCTHW, ROWS, tile, share, stride)
