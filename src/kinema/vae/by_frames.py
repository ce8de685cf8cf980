"""Causal convolutions over a few frames at a time, with the same result: their inputs are never held whole.

A convolution of a long clip would hold the clip again, normed, then again, padded. Here frames are normed, activated or
upsampled straight into a padded buffer of a few frames, whose last ones are kept for the next few. What is whole is a
layer's input and its output. No gradient is recorded.

Letters: B batch, C channels, T frames, H W rows and columns, N frames of a part, G groups of channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.cancel import checkpoint

PART = 2**24
"""Values of a part's input, unless a single frame has more."""


class CausalConvolution(Protocol):
    """``pad`` as `F.pad` takes it: the border around, and the frames before, ``kernel - 1`` or fewer.

    Both are zero with ``zeros``; otherwise copies of the outermost values.
    """

    pad: tuple[int, ...]
    zeros: bool
    conv: nn.Conv3d


@dataclass(frozen=True)
class Frames:
    """What a convolution reads: ``write(start, into)`` fills ``into`` B×C×N×H×W with the frames from ``start`` on."""

    like: Tensor
    """Of its batch, channels, precision and device."""
    count: int
    height: int
    width: int
    write: Callable[[int, Tensor], object]


def by_frames(layer: CausalConvolution, frames: Frames, onto: Tensor | None = None) -> Tensor:
    """The convolution of ``frames``, a few at a time; with ``onto``, added to that tensor in place."""
    conv, side, before = layer.conv, layer.pad[0], layer.pad[4]
    step, kernel = conv.stride[0], conv.kernel_size[0]
    batch, channels = frames.like.shape[:2]
    total = (frames.count + before - kernel) // step + 1
    few = max(1, PART // (batch * channels * frames.height * frames.width * step))
    few = min(few, total)
    size = (frames.height + 2 * side, frames.width + 2 * side)
    buffer = frames.like.new_empty(batch, channels, step * (few - 1) + kernel, *size)
    out, filled = onto, before  # frames at the start of the buffer that are there already
    parts = range(0, total, few)
    for at in parts[:2] if buffer.is_meta else parts:  # rehearsed: others need no more memory than the second
        checkpoint()
        count = min(few, total - at)
        end = step * (count - 1) + kernel
        first = step * at - before + filled  # of the clip, for the first frame to be written
        _write(frames, first, buffer[:, :, filled:end], side, layer.zeros)
        if at == 0:
            buffer[:, :, :before] = 0 if layer.zeros else buffer[:, :, before : before + 1]
        part = conv(buffer[:, :, :end])
        if onto is not None:
            onto[:, :, at : at + count] += part
        elif count == total:
            return part
        else:
            out = part.new_empty(*part.shape[:2], total, *part.shape[3:]) if out is None else out
            out[:, :, at : at + count] = part
        filled = kernel - step if kernel > step else 0
        buffer[:, :, :filled] = buffer[:, :, end - filled : end].clone()
    assert out is not None
    return out


def mixed(conv: nn.Conv3d, x_BCTHW: Tensor) -> Tensor:
    """A 1×1×1 convolution frame by frame, into the input's first channels where it has as many as the result."""
    count = conv.out_channels
    narrower = count <= x_BCTHW.shape[1]
    out = x_BCTHW[:, :count] if narrower else x_BCTHW.new_empty(x_BCTHW.shape[0], count, *x_BCTHW.shape[2:])
    frames = range(x_BCTHW.shape[2])
    for t in frames[:1] if x_BCTHW.is_meta else frames:
        checkpoint()
        out[:, :, t : t + 1] = conv(x_BCTHW[:, :, t : t + 1])
    return out


def _write(frames: Frames, first: int, into_BCNHW: Tensor, side: int, zeros: bool) -> None:
    """Frames and the border around them."""
    if not side:
        frames.write(first, into_BCNHW)
        return
    frames.write(first, into_BCNHW[..., side:-side, side:-side])
    for axis in (-2, -1):
        length = into_BCNHW.shape[axis]
        for edge in range(side):
            for at, inner in ((edge, side), (length - 1 - edge, length - 1 - side)):
                border = into_BCNHW.select(axis, at)
                border.zero_() if zeros else border.copy_(into_BCNHW.select(axis, inner))


# --------------------------------------------------------------------------------------- what they read


def unchanged(x_BCTHW: Tensor) -> Frames:
    def write(start: int, into: Tensor) -> None:
        into.copy_(x_BCTHW[:, :, start : start + into.shape[2]])

    _, _, count, height, width = x_BCTHW.shape
    return Frames(x_BCTHW, count, height, width, write)


def activated(norm: nn.GroupNorm, x_BCTHW: Tensor) -> Frames:
    """Group norm over the whole clip, then SiLU, computed in float32."""
    scale, shift = scale_and_shift(norm, x_BCTHW)

    def write(start: int, into: Tensor) -> None:
        part = x_BCTHW[:, :, start : start + into.shape[2]]
        into.copy_(F.silu(torch.addcmul(shift, part.float(), scale), inplace=True))

    _, _, count, height, width = x_BCTHW.shape
    return Frames(x_BCTHW, count, height, width, write)


def repeated(x_BCTHW: Tensor, stride: tuple[int, int, int]) -> Frames:
    """Nearest neighbours; the first frame stays one frame."""
    time, rows, columns = stride
    frames, height, width = x_BCTHW.shape[2:]

    def write(start: int, into: Tensor) -> None:
        wide = into.unflatten(-1, (width, columns)).unflatten(-3, (height, rows))
        for at in range(into.shape[2]):  # the frame that output frame f repeats: 0, then each of the others in turn
            wide[:, :, at] = x_BCTHW[:, :, -(-(start + at) // time), :, None, :, None]

    return Frames(x_BCTHW, (frames - 1) * time + 1, height * rows, width * columns, write)


def scale_and_shift(norm: nn.GroupNorm, x_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
    """Group norm as ``scale * x + shift``, each B×C×1×1×1 in float32.

    Statistics of single channels and frames are combined by Chan, Golub and LeVeque (1979), which cancels nothing.
    """
    frames = x_BCTHW.unbind(2)
    frames = frames[:1] if x_BCTHW.is_meta else frames  # rehearsed: they are looked at one by one
    stats = [torch.var_mean(x.float().flatten(2), dim=2, correction=0) for x in frames]
    var, mean = (torch.stack(each, dim=-1) for each in zip(*stats, strict=True))  # each B×C×T
    var_BGN, mean_BGN = (each.unflatten(1, (norm.num_groups, -1)).flatten(2) for each in (var, mean))
    mean_BG1 = mean_BGN.mean(-1, keepdim=True)
    var_BG1 = (var_BGN + (mean_BGN - mean_BG1).square()).mean(-1, keepdim=True)
    each = norm.num_channels // norm.num_groups
    rate_BC, mean_BC = (x.repeat_interleave(each, dim=1)[..., 0] for x in (torch.rsqrt(var_BG1 + norm.eps), mean_BG1))
    scale_BC = rate_BC if norm.weight is None else rate_BC * norm.weight.float()
    shift_BC = -mean_BC * scale_BC if norm.bias is None else norm.bias.float() - mean_BC * scale_BC
    return scale_BC[..., None, None, None], shift_BC[..., None, None, None]
