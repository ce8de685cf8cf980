"""A codec's residual block on a large map, in strips of rows: as `nn.ldm_unet.ResBlock`, in less memory.

Only the norms look further than the next row. With their statistics taken first, a strip goes through norm, SiLU and
convolution while a CPU keeps it near, and of the maps between only one is held, in memory that every image uses again:
fresh pages cost a CPU more than what is written to them.

Letters: C and K channels in and out, H W rows and columns, R rows of a strip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.cancel import checkpoint
from kinema.nn import winograd
from kinema.nn.ldm_unet import GroupNorm, ResBlock, scale_and_shift

LEAST, STRIP = 2**22, 2**20
"""Numbers of a map that is worth cutting, and of a strip."""

Convolution = Callable[[Tensor], Tensor]
"""Of a strip with its border, 1×(R+2)×(W+2)×C -> 1×R×W×K."""


def pays(block: ResBlock, numbers: int, x: Tensor) -> bool:
    """Whether a block on a map of so many numbers, like x, may be computed so: on a CPU that samples, in floats.

    Maps of halves are half as large, and their convolutions done before strips of them have paid.
    """
    recorded = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    if recorded or not x.is_cpu or x.dtype.itemsize < 4 or numbers < LEAST or block._forward_hooks:
        return False
    for layer in block.children():
        if type(layer) not in (GroupNorm, nn.Conv2d) or layer._forward_hooks or layer.weight.dtype != x.dtype:
            return False
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            return False
    return True


def residual(block: ResBlock, height: int, width: int) -> Callable[[Tensor, Tensor, Tensor], None]:
    """``residual(block, H, W)(x, out, room)`` has ``out`` [H, W, K] be ``block(x)`` of an image [H, W, C].

    ``out`` may be x; ``room`` has H·W·K numbers. The weights are made ready once. No gradient is recorded.
    """
    into, out_of = (convolution(conv, height, width) for conv in (block.conv1, block.conv2))

    def run(x_HWC: Tensor, out_HWK: Tensor, room: Tensor) -> None:
        checkpoint()
        between_HWK = room.view(out_HWK.shape)

        def first() -> Iterator[Tensor]:
            told = scale_and_shift(block.norm1, (x[None] for x in x_HWC.split(_rows(x_HWC))))
            for rows, made_RWK in activated(into, told, x_HWC):
                yield between_HWK[rows].copy_(made_RWK)[None]

        told = scale_and_shift(block.norm2, first())
        for rows, made_RWK in activated(out_of, told, between_HWK):
            short = x_HWC[rows]
            if (layer := block.conv_shortcut) is not None:
                short = layer(as_images(short[None]))[0].permute(1, 2, 0)
            torch.add(made_RWK, short, out=out_HWK[rows])

    return run


def activated(run: Convolution, told: tuple[Tensor, Tensor], x_HWC: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """``conv(silu(scale * x + shift))`` of a 3×3 convolution with a border of zeros, strip by strip, R×W×K each."""
    height, width, channels = x_HWC.shape
    scale, shift = told[0][0], told[1][0]
    few = _rows(x_HWC)
    padded = x_HWC.new_zeros(1, few + 2, width + 2, channels)
    for at in range(0, height, few):
        end = min(at + few, height)
        above, below = max(at - 1, 0), min(end + 1, height)
        inner = padded[0, above - at + 1 : below - at + 1, 1:-1]
        normed = torch.addcmul(shift, x_HWC[above:below], scale)
        torch.ops.aten.silu.out(normed, out=inner)
        if end == height:
            padded[:, end - at + 1] = 0
        yield slice(at, end), run(padded[:, : end - at + 2])[0]


def convolution(conv: nn.Conv2d, height: int, width: int) -> Convolution:
    """A 3×3 convolution of strips of a map of this size."""
    if winograd.pays(conv, conv.weight.new_empty(()).expand(1, conv.in_channels, height, width)):
        return winograd.of_padded(conv)
    return lambda x: F.conv2d(as_images(x), conv.weight, conv.bias).permute(0, 2, 3, 1)


def as_images(x_NHWC: Tensor) -> Tensor:
    """N×C×H×W in channels-last memory. A row of images must be there before, or PyTorch copies what it cannot tell."""
    return x_NHWC.permute(0, 3, 1, 2)


def _rows(x_HWC: Tensor) -> int:
    """Rows of a strip, a multiple of a tile's."""
    return max(1, STRIP // (x_HWC[0].numel() * winograd.TILE)) * winograd.TILE
