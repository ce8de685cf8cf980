"""Building blocks of Stable Diffusion's image U-Net, 1.5 and XL (Rombach et al. 2022; Podell et al. 2023), with the
parameter names of diffusers' ``UNet2DConditionModel``. Families insert their own layers between them.

Letters: B clips, T frames, N = B·T images, R rows of context (B or N), C channels, H W latent rows and columns,
S = H·W positions, L context tokens, E width of the noise-level embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from kinema.nn.ldm_unet import (
    Downsample,
    ResBlock,
    TransformerBlock,
    Upsample,
    add_,
    group_norm,
    to_map,
    tokens,
)
from kinema.nn.linear import Linear, linear

EPS, TRANSFORMER_EPS = 1e-5, 1e-6


@dataclass(frozen=True, eq=False)
class BlockInputs:
    """Inputs shared by all blocks in one forward pass."""

    emb_BE: Tensor
    context_RLC: Tensor


AnyInputs = TypeVar("AnyInputs", bound=BlockInputs)


@dataclass(frozen=True, eq=False)
class Residuals:
    """Residuals of a control network: for each skip connection, in order, and for the middle; N×C×H×W (or 1×1)."""

    skips: Sequence[Tensor]
    middle: Tensor

    def __add__(self, other: Residuals) -> Residuals:
        skips = [a + b for a, b in zip(self.skips, other.skips, strict=True)]
        return Residuals(skips, self.middle + other.middle)


def images(x_BCTHW: Tensor) -> Tensor:
    """``BCTHW -> NCHW`` in channels-last memory: one copy here instead of one in each layer."""
    b, c, t, h, w = x_BCTHW.shape
    return x_BCTHW.permute(0, 2, 3, 4, 1).reshape(b * t, h, w, c).permute(0, 3, 1, 2)


def clips(x_NCHW: Tensor, frames: int) -> Tensor:
    """``NCHW -> BCTHW``."""
    return x_NCHW.unflatten(0, (-1, frames)).transpose(1, 2)


# ---------------------------------------------------------------------------------------- running


def run_down(levels: nn.ModuleList, x_NCHW: Tensor, inputs: BlockInputs) -> tuple[Tensor, list[Tensor]]:
    """Run the encoder; return its output and the skip connections, starting with the input."""
    skips = [x_NCHW]
    for level in cast(Sequence[UNetLevel[Any]], levels):
        for index in range(len(level.resnets)):
            x_NCHW = level(index, x_NCHW, inputs)
            skips.append(x_NCHW)
        if level.downsamplers is not None:
            x_NCHW = level.downsamplers[0](x_NCHW)
            skips.append(x_NCHW)
    return x_NCHW, skips


def run_mid(level: UNetLevel[AnyInputs], x_NCHW: Tensor, inputs: AnyInputs) -> Tensor:
    """Run the middle: residual block, transformer, residual block."""
    return level.residual(1, level(0, x_NCHW, inputs), inputs)


def run_up(levels: nn.ModuleList, x_NCHW: Tensor, skips: list[Tensor], inputs: BlockInputs) -> Tensor:
    """Run the decoder, popping all skip connections from the end of the list."""
    for level in cast(Sequence[UNetLevel[Any]], levels):
        for index in range(len(level.resnets)):
            x_NCHW = level(index, torch.cat([x_NCHW, skips.pop()], dim=1), inputs)
        if level.upsamplers is not None:
            x_NCHW = level.upsamplers[0](x_NCHW, size=skips[-1].shape[-2:])
    return x_NCHW


# ------------------------------------------------------------------------------------------ modules


class UNetLevel(nn.Module, Generic[AnyInputs]):
    """One resolution level: residual blocks, each followed by a transformer if the level has attention."""

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
        """Set the level's resampling layers. A subclass with more layers calls it again, so that these come last."""
        self.downsamplers = nn.ModuleList([down]) if down else None
        self.upsamplers = nn.ModuleList([up]) if up else None

    def forward(self, index: int, x_NCHW: Tensor, inputs: AnyInputs) -> Tensor:
        """Residual block ``index`` and its transformer."""
        x_NCHW = self.residual(index, x_NCHW, inputs)
        return self.attention(index, x_NCHW, inputs) if len(self.attentions) else x_NCHW

    def residual(self, index: int, x_NCHW: Tensor, inputs: AnyInputs) -> Tensor:
        return self.resnets[index](x_NCHW, inputs.emb_BE)

    def attention(self, index: int, x_NCHW: Tensor, inputs: AnyInputs) -> Tensor:
        return self.attentions[index](x_NCHW, inputs.context_RLC)


class Pointwise(nn.Conv2d):
    """A linear layer on tokens whose weight has the shape of a 1×1 convolution, as in SD 1.5's weight files."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 1)

    def forward(self, x_NSC: Tensor) -> Tensor:
        return linear(x_NSC, self.weight.flatten(1), self.bias)


class Transformer(nn.Module):
    """Spatial transformer blocks between two projections, with a residual connection.

    ``block(width, heads, context_width)`` builds a block; ``forward`` passes it all arguments after the context.
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
        self.proj_in = Linear(channels, channels) if linear else Pointwise(channels)
        self.transformer_blocks = nn.ModuleList(block(channels, heads, context) for _ in range(depth))
        self.proj_out = Linear(channels, channels) if linear else Pointwise(channels)

    def forward(self, x_NCHW: Tensor, context_RLC: Tensor, *more: Any) -> Tensor:
        x_NSC = self.proj_in(tokens(self.norm(x_NCHW)))
        for block in self.transformer_blocks:
            x_NSC = block(x_NSC, context_RLC, *more)
        return add_(to_map(self.proj_out(x_NSC), x_NCHW.shape[2]), x_NCHW)


# ---------------------------------------------------------------------------------------- building


class ImageSizes(Protocol):
    """The sizes of an image U-Net, in a config: widths, blocks and heads by resolution level, finest first."""

    @property
    def channels(self) -> Sequence[int]: ...

    @property
    def layers(self) -> int:
        """Residual blocks of an encoder level; a decoder level has one more."""

    @property
    def depths(self) -> Sequence[int]:
        """Transformer blocks after each residual block; 0 for a level without attention."""

    @property
    def heads(self) -> Sequence[int]: ...

    @property
    def context(self) -> int:
        """Width of the text embeddings."""

    @property
    def linear(self) -> bool:
        """Whether the transformers' projections are stored as linear layers, as in XL, or as 1×1 convolutions."""


Blocks = tuple[list[ResBlock], list[Transformer]]


@dataclass(frozen=True)
class BlockBuilder:
    """Builds the blocks of each level of an image U-Net; families may replace the kinds of blocks."""

    sizes: ImageSizes
    resnet: Callable[[int, int, int, float], ResBlock] = ResBlock
    """Called with the input and output channels, the width of the noise-level embedding, and the norms' epsilon."""
    transformer: Callable[[int, int, int, int, bool], Transformer] = Transformer
    """Called with the channels, heads, width of the context, depth, and whether projections are linear."""

    def down(self, level: int) -> Blocks:
        """An encoder level's."""
        return self._blocks(level, down_inputs(self.sizes.channels, self.sizes.layers, level))

    def up(self, level: int) -> Blocks:
        """A decoder level's; ``level`` counts from the finest."""
        return self._blocks(level, up_inputs(self.sizes.channels, self.sizes.layers, level))

    def middle(self) -> Blocks:
        """Those of the middle."""
        width = self.sizes.channels[-1]
        return [self.residual(width, width) for _ in range(2)], self.transformers(
            -1, middle_depth(self.sizes.depths), 1
        )

    def residual(self, into: int, out: int) -> ResBlock:
        return self.resnet(into, out, 4 * self.sizes.channels[0], EPS)

    def transformers(self, level: int, depth: int, count: int) -> list[Transformer]:
        """``count`` transformers of a level's width; none of depth 0."""
        sizes = self.sizes
        if not depth:
            return []
        width, heads = sizes.channels[level], sizes.heads[level]
        return [self.transformer(width, heads, sizes.context, depth, sizes.linear) for _ in range(count)]

    def _blocks(self, level: int, widths: Sequence[int]) -> Blocks:
        resnets = [self.residual(into, self.sizes.channels[level]) for into in widths]
        return resnets, self.transformers(level, self.sizes.depths[level], len(widths))


# ------------------------------------------------------------------------------------------ widths


def down_inputs(channels: Sequence[int], layers: int, level: int) -> list[int]:
    """Return the input channels of each residual block of an encoder level."""
    return [channels[level - 1 if level and not i else level] for i in range(layers)]


def up_inputs(channels: Sequence[int], layers: int, level: int) -> list[int]:
    """Return the input channels of each residual block of a decoder level; ``level`` counts from the finest.

    Each is the sum of the previous block's output and the skip connection; the last skip comes from the finer level.
    """
    out, top = channels[level], len(channels) - 1
    below = [channels[min(level + 1, top)]] + [out] * layers
    skips = [out] * layers + [channels[max(level - 1, 0)]]
    return [x + skip for x, skip in zip(below, skips, strict=True)]


def middle_depth(depths: Sequence[int]) -> int:
    """Return the number of transformer blocks in the middle: that of the coarsest level with attention."""
    return next((depth for depth in reversed(depths) if depth), 0)
