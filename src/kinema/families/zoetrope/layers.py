"""Blocks of Zoetrope's grids, and convolutions on B·T·H·W·C memory. Letters as in `model`."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.nn.linear import Linear


class ConvBlock(nn.Module):
    """Residual block: 3×3 convolution (modulated), 3-frame temporal convolution, 3×3 convolution."""

    def __init__(self, channels: int, cond: int) -> None:
        super().__init__()
        self.modulate = Linear(cond, 2 * channels)
        self.space1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.time = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.space2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        with torch.no_grad():  # near the identity, but far enough from it to learn from the first step
            self.space2.weight.mul_(0.3)

    def forward(self, x_BTHWC: Tensor, cond_BM: Tensor, span: int) -> Tensor:
        """Temporal convolution mixes frames only within groups of ``span``."""
        shift, scale = self.modulate(cond_BM)[:, None, None, None].chunk(2, dim=-1)
        h = F.layer_norm(x_BTHWC, x_BTHWC.shape[-1:]) * (1 + scale) + shift
        h = F.silu(over_space(self.space1, h))
        h = F.silu(h + over_time(self.time, h, span))
        return x_BTHWC + over_space(self.space2, h)


class PlaceBlock(nn.Module):
    """Residual, modulated GELU MLP applied to every place of every frame independently.

    The pixels that an outline covers depend jointly on the glyph and on its position, size and rotation. A layer can
    represent about one such case per hidden unit, and a 3×3 convolution of the same cost has a tenth of the units.
    """

    def __init__(self, channels: int, hidden: int, cond: int) -> None:
        super().__init__()
        self.modulate = Linear(cond, 2 * channels)
        self.up, self.down = Linear(channels, hidden), Linear(hidden, channels)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        with torch.no_grad():
            self.down.weight.mul_(0.3)

    def forward(self, x_BTHWC: Tensor, cond_BM: Tensor, span: int) -> Tensor:  # noqa: ARG002
        """Ignores ``span``: frames are not mixed."""
        shift, scale = self.modulate(cond_BM)[:, None, None, None].chunk(2, dim=-1)
        h = F.layer_norm(x_BTHWC, x_BTHWC.shape[-1:]) * (1 + scale) + shift
        return x_BTHWC + self.down(F.gelu(self.up(h), approximate="tanh"))


def over_space(conv: nn.Conv2d, x_BTHWC: Tensor) -> Tensor:
    """Apply a 2D convolution to every frame, in channels-last memory throughout."""
    folded = rearrange(x_BTHWC, "b t h w c -> (b t) c h w")
    return rearrange(conv(folded), "(b t) c h w -> b t h w c", b=x_BTHWC.shape[0])


def over_time(conv: nn.Conv2d, x_BTHWC: Tensor, span: int) -> Tensor:
    """Apply a temporal convolution as a 2D one over (frames, places): the same result, several times faster."""
    h, t = x_BTHWC.shape[2], x_BTHWC.shape[1]
    folded = rearrange(x_BTHWC, "b (n t) h w c -> (b n) c t (h w)", t=span)
    return rearrange(conv(folded), "(b n) c t (h w) -> b (n t) h w c", n=t // span, h=h)


def exact(x: Tensor) -> Tensor:
    """Cast to float32, unless the tensor already has higher precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
