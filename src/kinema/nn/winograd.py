"""Winograd convolutions on a CPU (Lavin and Gray 2016): 3×3 in space, and 3 taps in time.

A tile of 4×4 outputs depends on 6×6 inputs. With matrices A [6, 4], G [6, 3] and B [6, 6], the tile is
``Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A``: 36 multiplications per channel instead of 144. Over all channels these are 36 matrix
products; the transforms are thin matrix products along contiguous rows.

The matrices follow from Toom-Cook interpolation at five points and infinity. The points determine the rounding error:
with the usual 0, ±1, ±2 it is 3.8 times that of PyTorch's convolution, with 0, ±1/√2, ±√2 it is 1.8 times (256 channels
of unit variance, float32).

Letters: N images, C and K channels in and out, H W rows and columns, R tiles of one strip.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.nn.linear import mkl_is_fast

TILE, KERNEL = 4, 3
WIDE = TILE + KERNEL - 1
POINTS = (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))
STRIP = 128
"""Tiles at a time: few enough that transforms stay in cache, enough for efficient matrix products."""
MIN_CHANNELS, MIN_POSITIONS = 128, 4096
"""With fewer channels the input transforms cost more than is saved, with fewer positions the weight transforms do."""


def conv_after_silu(conv: nn.Module, x_NCHW: Tensor) -> Tensor:
    """Compute ``conv(silu(x))`` of a residual block; may overwrite x if no gradient is needed."""
    if is_faster(conv, x_NCHW):
        return convolve(cast(nn.Conv2d, conv), x_NCHW, silu=True)
    return conv(F.silu(x_NCHW, inplace=not x_NCHW.requires_grad))


def is_faster(conv: nn.Module, x_NCHW: Tensor) -> bool:
    """Whether `convolve` supports this layer and input, and is faster than PyTorch."""
    if type(conv) is not nn.Conv2d or not _large(conv, x_NCHW):
        return False
    plain = conv.kernel_size == (3, 3) and conv.stride == conv.dilation == conv.padding == (1, 1) and conv.groups == 1
    return plain and conv.padding_mode == "zeros" and x_NCHW.shape[2] % TILE == x_NCHW.shape[3] % TILE == 0


def is_faster_over_time(conv: nn.Module, x_BCTS: Tensor) -> bool:
    """Whether `convolve_over_time` supports this layer and input, and is faster than PyTorch."""
    # Fewer than 7 frames would waste too much of the padding to a multiple of 4.
    return type(conv) is nn.Conv3d and conv.kernel_size == (3, 1, 1) and x_BCTS.shape[2] >= 7 and _large(conv, x_BCTS)


def _large(conv: nn.Conv2d | nn.Conv3d, x: Tensor) -> bool:
    """Whether the layer and input are large enough, and this is float32 inference on a suitable CPU."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    if not x.is_cpu or not x.dtype == conv.weight.dtype == torch.float32 or not mkl_is_fast():
        return False
    positions = x.shape[0] * x.shape[2] * x.shape[3]
    return (
        not conv._forward_hooks
        and min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS
        and positions >= MIN_POSITIONS
    )


def convolve(conv: nn.Conv2d, x_NCHW: Tensor, *, silu: bool = False) -> Tensor:
    """Compute ``conv(x)`` or ``conv(silu(x))`` for a zero-padded 3×3 convolution; H and W are multiples of 4.

    x N×C×H×W -> N×K×H×W in channels-last memory, both float32 on a CPU. No gradient is recorded.
    """
    return convolve_padded(conv)(_padded(x_NCHW, silu)).permute(0, 3, 1, 2)


def convolve_padded(conv: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    """Return the convolution of padded inputs, contiguous N×(H+2)×(W+2)×C -> N×H×W×K; transforms the weight once."""
    input_BT, _, output_AT = matrices()
    weight_QCK = transform_weight(conv.weight)
    out_channels = conv.out_channels

    def run(padded_NHWC: Tensor) -> Tensor:
        n, height, width, channels = padded_NHWC.shape
        height, width = height - 2, width - 2
        rows, columns = height // TILE, width // TILE
        out_NHWK = padded_NHWC.new_empty(n, height, width, out_channels)
        out_tiles = out_NHWK.view(n, rows, TILE, columns, TILE, out_channels)
        few_rows = min(rows, max(1, STRIP // columns))
        few = max(1, STRIP // (rows * columns)) if few_rows == rows else 1
        step, line, image = channels, channels * (width + 2), channels * (width + 2) * (height + 2)
        most = min(few, n) * few_rows * columns * WIDE**2 * max(channels, out_channels)
        one, other = padded_NHWC.new_empty(most), padded_NHWC.new_empty(most)
        for i in range(0, n, few):
            for at in range(0, rows, few_rows):
                tiles = (min(few, n - i), min(few_rows, rows - at), columns)
                count = tiles[0] * tiles[1] * tiles[2]
                patches = padded_NHWC.as_strided(
                    (WIDE, WIDE, *tiles, channels),
                    (step, line, image, TILE * line, TILE * step, 1),
                    padded_NHWC.storage_offset() + i * image + at * TILE * line,
                )
                size = WIDE**2 * count * channels
                a, b = one[:size].view(WIDE, WIDE, -1), other[:size].view(WIDE, WIDE, -1)
                a.view(patches.shape).copy_(patches)
                torch.bmm(input_BT.expand(WIDE, WIDE, WIDE), a, out=b)
                torch.mm(input_BT, b.view(WIDE, -1), out=a.view(WIDE, -1))
                size = WIDE**2 * count * out_channels
                b = other[:size].view(WIDE**2, count, out_channels)
                torch.bmm(a.view(WIDE**2, count, channels), weight_QCK, out=b)
                a = one[: size * TILE // WIDE].view(TILE, -1)
                torch.mm(output_AT, b.view(WIDE, -1), out=a)
                b = other[: TILE**2 * count * out_channels].view(TILE, TILE, -1)
                torch.bmm(output_AT.expand(TILE, TILE, WIDE), a.view(TILE, WIDE, -1), out=b)
                part = b.view(TILE, TILE, *tiles, out_channels)
                target = out_tiles[i : i + few, at : at + few_rows].permute(4, 2, 0, 1, 3, 5)
                if conv.bias is None:
                    target.copy_(part)
                else:
                    torch.add(part, conv.bias, out=target)
        return out_NHWK

    return run


def convolve_over_time(conv: nn.Conv3d) -> Callable[[Tensor], Tensor]:
    """Return a zero-padded convolution of kernel (3, 1, 1), B×C×T×S -> B×K×T×S, with half the multiplications.

    Four output frames depend on six input frames; the transforms are thin products along whole frames. The weight is
    transformed once, so the result can be called for each strip of a feature map. No gradient is recorded.
    """
    input_BT, weight_G, output_AT = matrices()
    k, c = conv.weight.shape[:2]
    g = conv.weight.detach()[..., 0, 0].permute(2, 0, 1).reshape(KERNEL, k * c)
    weight_QCK = torch.mm(weight_G, g).view(WIDE, k, c).transpose(1, 2)

    def convolve_strip(x_BCTS: Tensor) -> Tensor:
        b, _, frames, positions = x_BCTS.shape
        tiles = -(-frames // TILE)
        padded = x_BCTS.new_empty(b, TILE * tiles + 2, positions * c)
        padded[:, 0] = 0
        padded[:, frames + 1 :] = 0
        padded[:, 1 : frames + 1].view(b, frames, positions, c).copy_(x_BCTS.permute(0, 2, 3, 1))
        result = x_BCTS.new_empty(b, tiles, TILE, positions * k)
        part = x_BCTS.new_empty(tiles, WIDE, positions, k)
        for clip, out in zip(padded, result, strict=True):
            six = clip.as_strided((tiles, WIDE, positions * c), (TILE * positions * c, positions * c, 1))
            transformed = torch.bmm(input_BT.expand(tiles, WIDE, WIDE), six).view(tiles, WIDE, positions, c)
            for tile, products in zip(transformed, part, strict=True):
                torch.bmm(tile, weight_QCK, out=products)
            torch.bmm(output_AT.expand(tiles, TILE, WIDE), part.view(tiles, WIDE, -1), out=out)
        out_BTSK = result.view(b, TILE * tiles, positions, k)[:, :frames]
        return (out_BTSK if conv.bias is None else out_BTSK.add_(conv.bias)).permute(0, 3, 1, 2)

    return convolve_strip


def _padded(x_NCHW: Tensor, silu: bool) -> Tensor:
    """Zero-pad x, or its SiLU, to N×(H+2)×(W+2)×C."""
    n, channels, height, width = x_NCHW.shape
    padded = x_NCHW.new_empty(n, height + 2, width + 2, channels)
    for border in (padded[:, 0], padded[:, -1], padded[:, :, 0], padded[:, :, -1]):
        border.zero_()
    inner, x_NHWC = padded[:, 1:-1, 1:-1], x_NCHW.permute(0, 2, 3, 1)
    if silu:
        torch.ops.aten.silu.out(x_NHWC, out=inner)
    else:
        inner.copy_(x_NHWC)
    return padded


def transform_weight(weight_KC33: Tensor) -> Tensor:
    """``G g Gᵀ`` for each pair of channels, 36×C×K, column-major within the tile."""
    _, weight_G, _ = matrices()
    k, c = weight_KC33.shape[:2]
    g = weight_KC33.detach().permute(3, 2, 0, 1).reshape(KERNEL, KERNEL, k * c)
    g = torch.bmm(weight_G.expand(KERNEL, WIDE, KERNEL), g)
    return torch.mm(weight_G, g.view(KERNEL, -1)).view(WIDE**2, k, c).transpose(1, 2)


@cache
def matrices() -> tuple[Tensor, Tensor, Tensor]:
    """Return Bᵀ [6, 6], G [6, 3] and Aᵀ [4, 6], float32.

    A and G contain the powers of the points, and the highest power for infinity. Bᵀ is the transposed inverse of the
    powers up to the fifth, which makes the result exact. The scale of a point's row can be in B or in G; here B's rows
    are polynomials with leading coefficient 1, as in Lavin and Gray.
    """
    points = torch.tensor(POINTS, dtype=torch.float64, device="cpu")

    def powers(count: int) -> Tensor:
        last = points.new_zeros(1, count)
        last[0, -1] = 1
        return torch.cat([points[:, None] ** torch.arange(count, device="cpu"), last])

    differences = points[:, None] - points + torch.eye(len(points)).to(points)
    scale = torch.cat([differences.prod(1), points.new_ones(1)])[:, None]
    input_BT = torch.linalg.inv(powers(WIDE)).T * scale
    return input_BT.float(), (powers(KERNEL) / scale).float(), powers(TILE).T.contiguous().float()
