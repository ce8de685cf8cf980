"""The Space-Time U-Net: an image U-Net, halved in time wherever it is in space, with temporal layers (§3.1).

The image part has the parameter names of diffusers' ``UNet2DConditionModel``; the temporal layers are ``temporal`` and
the input of given pixels is ``conv_given``.

Letters: B clips, T frames, N = B·T images, C channels, H W latent rows and columns, L context tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from kinema.families.lumiere.config import Config
from kinema.families.lumiere.space_time import SpaceTimeConv, TemporalAttention, TemporalDownsample, TemporalUpsample
from kinema.nn.embeddings import sinusoidal
from kinema.nn.ldm_unet import (
    Downsample,
    TimestepEmbedding,
    Upsample,
    add_,
    group_norm,
    set_norm_groups,
    silu_,
    with_input_grad,
)
from kinema.nn.sd_unet import (
    EPS,
    BlockBuilder,
    BlockInputs,
    UNetLevel,
    clips,
    images,
)

NEW = ("temporal.", "conv_given.", "conv_small.", "conv_detail.")
"""Prefixes of the parameters that the image model does not have."""


class TemporalLevel(nn.Module):
    """The temporal layers of one resolution level: a block after each of the image model's, and a resampling."""

    def __init__(self, blocks: list[nn.Module], resample: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample


class Temporal(nn.Module):
    """All temporal layers: convolutions, and attention at the coarsest level."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        levels, last = range(len(config.channels)), len(config.channels) - 1

        def blocks(level: int, count: int) -> list[nn.Module]:
            width = config.channels[level]
            if level < last:
                return [SpaceTimeConv(width, config.groups) for _ in range(count)]
            return [TemporalAttention(width, config.heads[level], config.temporal_layers) for _ in range(count)]

        def resample(kind: type[nn.Module], level: int, there: bool) -> nn.Module | None:
            return kind(config.channels[level]) if there and config.resamples else None

        self.down = nn.ModuleList(
            TemporalLevel(blocks(i, config.layers), resample(TemporalDownsample, i, i < last)) for i in levels
        )
        self.mid = TemporalLevel(blocks(last, 1))
        self.up = nn.ModuleList(
            TemporalLevel(blocks(i, config.layers + 1), resample(TemporalUpsample, i, i > 0)) for i in reversed(levels)
        )


class SpaceTimeUNet(nn.Module):
    """``forward(z, step, context, given) -> prediction`` B×C×T×H×W, of any number of frames."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels, emb = config.channels, 4 * config.channels[0]
        self.config = config
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], emb)
        build, last = BlockBuilder(config), len(channels) - 1
        downs = (Downsample(width) if i < last else None for i, width in enumerate(channels))
        self.down_blocks = nn.ModuleList(UNetLevel(*build.down(i), down=down) for i, down in enumerate(downs))
        self.mid_block: UNetLevel[BlockInputs] = UNetLevel(*build.middle())
        self.up_blocks = nn.ModuleList(
            UNetLevel(*build.up(i), up=Upsample(channels[i]) if i else None) for i in reversed(range(len(channels)))
        )
        self.conv_norm_out = group_norm(channels[0], EPS)
        self.conv_out = nn.Conv2d(channels[0], config.latent_channels, 3, padding=1)
        set_norm_groups(self, config.groups)
        self.temporal = Temporal(config)
        # The columns by which a first convolution of J alone is widened to ⟨J, C, M⟩ (§4.2): apart, so that the image
        # model's own stay as they are.
        given = nn.Conv2d(config.given_channels, channels[0], 3, padding=1, bias=False)
        nn.init.zeros_(given.weight)
        self.conv_given = given if config.conditioned else None
        # A super-resolution model adds its detail to the small clip, which it is at first.
        small = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1, bias=False)
        detail = nn.Conv2d(channels[0], config.latent_channels, 3, padding=1)
        for parameter in (*small.parameters(), *detail.parameters()):
            nn.init.zeros_(parameter)
        self.conv_small = small if config.enlarges > 1 else None
        self.conv_detail = detail if config.enlarges > 1 else None

    def forward(
        self,
        z_BCTHW: Tensor,
        step_B: Tensor,
        context_BLC: Tensor,
        given_BCTHW: Tensor | None = None,
        small_BCTHW: Tensor | None = None,
    ) -> Tensor:
        """``context`` has one row per clip; ``given`` holds what is known and its mask, zeros elsewhere.

        ``small`` is the small clip of super-resolution at the size of z, encoded. The prediction then is the sum of it
        and the output of a layer in place of the image model's last.
        """
        batch, _, frames, _, _ = z_BCTHW.shape
        sinusoids = sinusoidal(step_B, self.config.channels[0]).to(self.conv_in.weight.dtype)
        inputs = BlockInputs(silu_(self.time_embedding(sinusoids)), context_BLC)
        x = self.conv_in(images(z_BCTHW))
        if given_BCTHW is not None and self.conv_given is not None:
            x = add_(x, self.conv_given(images(given_BCTHW)))
        if small_BCTHW is not None and self.conv_small is not None:
            x = add_(x, self.conv_small(images(small_BCTHW)))
        skips = [x]
        for level, over_time in zip(_levels(self.down_blocks), _temporal(self.temporal.down), strict=True):
            for index, block in enumerate(over_time.blocks):
                x = _over_time(block, level(index, x, inputs), batch)
                skips.append(x)
            if level.downsamplers is not None:
                x = level.downsamplers[0](x)
                if over_time.resample is not None:
                    x = over_time.resample(x, len(x) // batch)
                skips.append(x)
        middle = self.mid_block
        x = _over_time(self.temporal.mid.blocks[0], middle(0, x, inputs), batch)
        x = middle.residual(1, x, inputs)
        for level, over_time in zip(_levels(self.up_blocks), _temporal(self.temporal.up), strict=True):
            for index, block in enumerate(over_time.blocks):
                x = _over_time(block, level(index, torch.cat([x, skips.pop()], dim=1), inputs), batch)
            if level.upsamplers is not None:
                x = level.upsamplers[0](x, size=skips[-1].shape[-2:])
                if over_time.resample is not None:
                    x = over_time.resample(x, len(x) // batch, len(skips[-1]) // batch)
        x = silu_(self.conv_norm_out(x))
        if small_BCTHW is None or self.conv_detail is None:
            return clips(self.conv_out(x), frames)
        return small_BCTHW + clips(self.conv_detail(x), frames)

    def image_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters of the image model, by name."""
        return (pair for pair in self.named_parameters() if not pair[0].startswith(NEW))


def _over_time(block: nn.Module, x_NCHW: Tensor, batch: int) -> Tensor:
    if isinstance(block, SpaceTimeConv):
        x_NCHW = with_input_grad(block.norm, x_NCHW)
    return block(x_NCHW, len(x_NCHW) // batch)


def _levels(modules: nn.ModuleList) -> Iterator[UNetLevel[BlockInputs]]:
    return (cast("UNetLevel[BlockInputs]", module) for module in modules)


def _temporal(modules: nn.ModuleList) -> Iterator[TemporalLevel]:
    return (cast(TemporalLevel, module) for module in modules)
