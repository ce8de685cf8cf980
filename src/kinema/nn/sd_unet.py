"""The parts of Stable Diffusion's image U-Net, 1.5 and XL (Rombach et al. 2022; Podell et al. 2023), under the names of
diffusers' ``UNet2DConditionModel``: what a family puts its own layers between.

Letters: B clips, T frames, N = B·T images, R rows of context (B or N), C channels, H W latent rows and columns,
S = H·W places, L context tokens, E width of the embedding of the noise level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.nn.ldm_unet import (
    Downsample,
    ResBlock,
    TransformerBlock,
    Upsample,
    add_,
    group_norm,
    places,
    tokens,
)

EPS, TRANSFORMER_EPS = 1e-5, 1e-6


@dataclass(frozen=True, eq=False)
class BlockInputs:
    """What every block of one forward pass is told."""

    emb_BE: Tensor
    context_RLC: Tensor


AnyInputs = TypeVar("AnyInputs", bound=BlockInputs)


@dataclass(frozen=True, eq=False)
class Residuals:
    """What a control network adds: to every skip, in the order they are made, and to the middle; N×C×H×W (or 1×1)."""

    skips: Sequence[Tensor]
    middle: Tensor

    def __add__(self, other: Residuals) -> Residuals:
        skips = [a + b for a, b in zip(self.skips, other.skips, strict=True)]
        return Residuals(skips, self.middle + other.middle)


def images(x_BCTHW: Tensor) -> Tensor:
    """``BCTHW -> NCHW`` in channels-last memory: one copy here instead of one per layer."""
    b, c, t, h, w = x_BCTHW.shape
    return x_BCTHW.permute(0, 2, 3, 4, 1).reshape(b * t, h, w, c).permute(0, 3, 1, 2)


def clips(x_NCHW: Tensor, frames: int) -> Tensor:
    """``NCHW -> BCTHW``."""
    return x_NCHW.unflatten(0, (-1, frames)).transpose(1, 2)


# ---------------------------------------------------------------------------------------- running


def run_down(levels: nn.ModuleList, x_NCHW: Tensor, told: BlockInputs) -> tuple[Tensor, list[Tensor]]:
    """The way down, and the map after every block, the first included."""
    skips = [x_NCHW]
    for level in cast(Sequence[UNetLevel[Any]], levels):
        for index in range(len(level.resnets)):
            x_NCHW = level(index, x_NCHW, told)
            skips.append(x_NCHW)
        if level.downsamplers is not None:
            x_NCHW = level.downsamplers[0](x_NCHW)
            skips.append(x_NCHW)
    return x_NCHW, skips


def run_mid(level: UNetLevel[AnyInputs], x_NCHW: Tensor, told: AnyInputs) -> Tensor:
    """Residual block, transformer and what follows it; residual block."""
    return level.residual(1, level(0, x_NCHW, told), told)


def run_up(levels: nn.ModuleList, x_NCHW: Tensor, skips: list[Tensor], told: BlockInputs) -> Tensor:
    """The way up; takes the skips from the end, and leaves none."""
    for level in cast(Sequence[UNetLevel[Any]], levels):
        for index in range(len(level.resnets)):
            x_NCHW = level(index, torch.cat([x_NCHW, skips.pop()], dim=1), told)
        if level.upsamplers is not None:
            x_NCHW = level.upsamplers[0](x_NCHW, size=skips[-1].shape[-2:])
    return x_NCHW


# ------------------------------------------------------------------------------------------ parts


class UNetLevel(nn.Module, Generic[AnyInputs]):
    """One resolution: residual blocks, each followed by a transformer where there are any."""

    def __init__(
        self,
        resnets: Sequence[ResBlock],
        attentions: Sequence[Transformer],
        *,
        down: Downsample | None = None,
        up: Upsample | None = None,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.end(down, up)

    def end(self, down: Downsample | None, up: Upsample | None) -> None:
        """How the level is left. Called again by one that has more layers, so that these come last among its names."""
        self.downsamplers = nn.ModuleList([down]) if down else None
        self.upsamplers = nn.ModuleList([up]) if up else None

    def forward(self, index: int, x_NCHW: Tensor, told: AnyInputs) -> Tensor:
        """Residual block ``index`` and its transformer."""
        x_NCHW = self.residual(index, x_NCHW, told)
        return self.attention(index, x_NCHW, told) if len(self.attentions) else x_NCHW

    def residual(self, index: int, x_NCHW: Tensor, told: AnyInputs) -> Tensor:
        return self.resnets[index](x_NCHW, told.emb_BE)

    def attention(self, index: int, x_NCHW: Tensor, told: AnyInputs) -> Tensor:
        return self.attentions[index](x_NCHW, told.context_RLC)


class Pointwise(nn.Conv2d):
    """A 1×1 convolution of tokens, under the shape its weight has in every file of SD 1.5."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 1)

    def forward(self, x_NSC: Tensor) -> Tensor:
        return F.linear(x_NSC, self.weight.flatten(1), self.bias)


class Transformer(nn.Module):
    """Transformer blocks over space between two projections; added to the input.

    ``block`` makes one of a width, heads and width of the context; ``forward`` passes it what comes after the context.
    """

    def __init__(  # noqa: PLR0917
        self,
        channels: int,
        heads: int,
        context: int,
        depth: int,
        linear: bool,
        block: Callable[[int, int, int], TransformerBlock] = TransformerBlock,
    ) -> None:
        super().__init__()
        self.norm = group_norm(channels, TRANSFORMER_EPS)
        self.proj_in = nn.Linear(channels, channels) if linear else Pointwise(channels)
        self.transformer_blocks = nn.ModuleList(block(channels, heads, context) for _ in range(depth))
        self.proj_out = nn.Linear(channels, channels) if linear else Pointwise(channels)

    def forward(self, x_NCHW: Tensor, context_RLC: Tensor, *more: Any) -> Tensor:
        x_NSC = self.proj_in(tokens(self.norm(x_NCHW)))
        for block in self.transformer_blocks:
            x_NSC = block(x_NSC, context_RLC, *more)
        return add_(places(self.proj_out(x_NSC), x_NCHW.shape[2]), x_NCHW)


# ------------------------------------------------------------------------------------------ sizes


def down_inputs(channels: Sequence[int], layers: int, level: int) -> list[int]:
    """Channels that each residual block of a level of the way down is given."""
    return [channels[level - 1 if level and not i else level] for i in range(layers)]


def up_inputs(channels: Sequence[int], layers: int, level: int) -> list[int]:
    """The same of the way up, where ``level`` counts from the finest.

    They are what the level below made, and the skips: of this level, the last one of the level above it.
    """
    out, top = channels[level], len(channels) - 1
    below = [channels[min(level + 1, top)]] + [out] * layers
    skips = [out] * layers + [channels[max(level - 1, 0)]]
    return [x + skip for x, skip in zip(below, skips, strict=True)]


def middle_depth(depths: Sequence[int]) -> int:
    """Transformer blocks of the middle: those of the lowest level that has any."""
    return next((depth for depth in reversed(depths) if depth), 0)
