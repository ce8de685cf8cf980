"""A codec's residual block on a large feature map, computed in strips of rows: `nn.ldm_unet.ResBlock` in less memory.

Only the norms depend on more than adjacent rows. Once their statistics are known, a strip passes through norm, SiLU
and convolution while it is in the CPU's cache. A single intermediate map is kept, in a buffer that all images reuse:
on a CPU, allocating fresh pages costs more than writing to them.

Letters: C input channels, K output channels, H rows, W columns, R rows of a strip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.cancel import checkpoint
from kinema.nn import winograd
from kinema.nn.ldm_unet import GroupNorm, ResBlock, Shortcut, scale_and_shift

LEAST, STRIP = 2**22, 2**20
"""Number of values in the smallest map that is worth splitting, and in a strip."""

Convolution = Callable[[Tensor], Tensor]
"""Convolves a padded strip: 1×(R+2)×(W+2)×C -> 1×R×W×K."""


def pays_off(block: ResBlock, values: int, x: Tensor) -> bool:
    """Return whether strips work and pay off for a block on a map of ``values`` elements with x's dtype and device.

    They do only on CPUs, without gradients, in float32 or wider: half-precision maps are half as large and their
    convolutions too fast for strips to pay off.
    """
    recorded = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    if recorded or not x.is_cpu or x.dtype.itemsize < 4 or values < LEAST or block._forward_hooks:
        return False
    for layer in block.children():
        if type(layer) not in (GroupNorm, nn.Conv2d, Shortcut) or layer._forward_hooks or layer.weight.dtype != x.dtype:
            return False
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            return False
    return True


def residual(block: ResBlock, height: int, width: int) -> Callable[[Tensor, Tensor, Tensor], None]:
    """Return a function ``run(x, out, buffer)`` that writes ``block(x)`` of an image H×W×C to ``out`` H×W×K.

    ``out`` may be x; ``buffer`` has H·W·K elements. The weights are prepared once. No gradient is recorded.
    """
    into, out_of = (convolution(conv, height, width) for conv in (block.conv1, block.conv2))

    def run(x_HWC: Tensor, out_HWK: Tensor, buffer: Tensor) -> None:
        checkpoint()
        between_HWK = buffer.view(out_HWK.shape)

        def first() -> Iterator[Tensor]:
            affine = scale_and_shift(block.norm1, (x[None] for x in x_HWC.split(_rows(x_HWC))))
            for rows, strip_RWK in activated(into, affine, x_HWC):
                yield between_HWK[rows].copy_(strip_RWK)[None]

        affine = scale_and_shift(block.norm2, first())
        for rows, strip_RWK in activated(out_of, affine, between_HWK):
            skip = x_HWC[rows]
            if (layer := block.conv_shortcut) is not None:
                skip = layer(as_images(skip[None]))[0].permute(1, 2, 0)
            torch.add(strip_RWK, skip, out=out_HWK[rows])

    return run


def activated(run: Convolution, affine: tuple[Tensor, Tensor], x_HWC: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield ``conv(silu(scale * x + shift))`` of a zero-padded 3×3 convolution, strip by strip, R×W×K each."""
    height, width, channels = x_HWC.shape
    scale, shift = affine[0][0], affine[1][0]
    size = _rows(x_HWC)
    padded = x_HWC.new_zeros(1, size + 2, width + 2, channels)
    for at in range(0, height, size):
        end = min(at + size, height)
        above, below = max(at - 1, 0), min(end + 1, height)
        inner = padded[0, above - at + 1 : below - at + 1, 1:-1]
        normed = torch.addcmul(shift, x_HWC[above:below], scale)
        torch.ops.aten.silu.out(normed, out=inner)
        if end == height:
            padded[:, end - at + 1] = 0
        yield slice(at, end), run(padded[:, : end - at + 2])[0]


def convolution(conv: nn.Conv2d, height: int, width: int) -> Convolution:
    """Prepare a 3×3 convolution for strips of a map of this size."""
    if winograd.is_faster(conv, conv.weight.new_empty(()).expand(1, conv.in_channels, height, width)):
        return winograd.convolve_padded(conv)
    return lambda x: F.conv2d(as_images(x), conv.weight, conv.bias).permute(0, 2, 3, 1)


def as_images(x_NHWC: Tensor) -> Tensor:
    """View N×H×W×C as N×C×H×W in channels-last memory.

    The batch axis must exist already, or PyTorch does not detect the memory format and copies.
    """
    return x_NHWC.permute(0, 3, 1, 2)


def _rows(x_HWC: Tensor) -> int:
    """Return the number of rows of a strip, a multiple of the Winograd tile."""
    return max(1, STRIP // (x_HWC[0].numel() * winograd.TILE)) * winograd.TILE
