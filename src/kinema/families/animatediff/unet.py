"""The image U-Net of Stable Diffusion 1.5 and XL (Rombach et al. 2022; Podell et al. 2023) with motion modules.

Names and shapes of the parameters are those of diffusers' ``UNetMotionModel``, and without motion modules those of
``UNet2DConditionModel``.

Letters: B clips, T frames, N = B·T images, R rows of context (B or N), C channels, H W latent rows and columns,
L context tokens, E width of the noise-level embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from torch import Tensor, nn

from kinema.families.animatediff.config import Config
from kinema.families.animatediff.control.ip_adapter import ImagePromptBlock, ImagePrompts, Projections
from kinema.families.animatediff.motion.module import (
    AS_TRAINED,
    MotionControl,
    MotionModule,
    norm_over_clip,
)
from kinema.nn.embeddings import sinusoidal
from kinema.nn.ldm_unet import (
    Downsample,
    ResBlock,
    TimestepEmbedding,
    Upsample,
    add_,
    group_norm,
    silu_,
    with_input_grad,
)
from kinema.nn.sd_unet import (
    EPS,
    BlockBuilder,
    BlockInputs,
    Residuals,
    Transformer,
    UNetLevel,
    clips,
    images,
    run_down,
    run_mid,
    run_up,
)
from kinema.nn.winograd import conv_after_silu
from kinema.schema import BadRequest


@dataclass(frozen=True, eq=False)
class MotionBlockInputs(BlockInputs):
    """Inputs shared by all blocks of one forward pass, including motion control and image prompts."""

    frames: int
    motion: bool = True
    motion_control: MotionControl = AS_TRAINED
    image_prompts: ImagePrompts = ()


class UNet(nn.Module):
    """``forward(z, step, context) -> predicted noise`` B×4×T×H×W.

    z B×C×T×H×W are scaled noisy latents; ``step_B`` the timestep of the noise level (0 to 999, may be fractional);
    ``context_RLC`` the prompt, one row per clip or per frame; ``added_BV`` SDXL's pooled prompt and sizes. Without
    ``motion`` the frames are independent images.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels, emb = config.channels, 4 * config.channels[0]
        self.config = config
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.conv_first = first_frame_layer(config) if config.motion == "pia" else None
        self.encoder_hid_proj = Projections(config.adapters, config.context) if config.adapters else None
        self.time_embedding = TimestepEmbedding(channels[0], emb)
        added = 6 * config.size_embedding
        self.add_embedding = TimestepEmbedding(added + config.pooled, emb) if added else None
        self.down_blocks = nn.ModuleList(down_level(config, level) for level in range(len(channels)))
        self.mid_block = mid_level(config, config.motion_mid)
        self.up_blocks = nn.ModuleList(_up(config, level) for level in reversed(range(len(channels))))
        self.conv_norm_out = group_norm(channels[0], EPS)
        self.conv_out = nn.Conv2d(channels[0], config.latent_channels, 3, padding=1)

    def forward(
        self,
        z_BCTHW: Tensor,
        step_B: Tensor,
        context_RLC: Tensor,
        added_BV: Tensor | None = None,
        *,
        motion: bool = True,
        motion_control: MotionControl = AS_TRAINED,
        control: Residuals | None = None,
        image_prompts: ImagePrompts = (),
        first_BCTHW: Tensor | None = None,
    ) -> Tensor:
        """``image_prompts`` are the IP-Adapters' tokens; ``first`` is PIA's mask and first frame."""
        _, c, frames, _, _ = z_BCTHW.shape
        if c != self.conv_in.in_channels:
            raise BadRequest(f"the latents have {c} channels; the U-Net expects {self.conv_in.in_channels}")
        emb_BE = silu_(self._embed(step_B, added_BV))
        inputs = MotionBlockInputs(emb_BE, context_RLC, frames, motion, motion_control, image_prompts)
        x = self.conv_in(images(z_BCTHW))
        if first_BCTHW is not None and self.conv_first is not None:
            x = add_(x, self.conv_first(images(first_BCTHW)).repeat(len(z_BCTHW) // len(first_BCTHW), 1, 1, 1))
        x, skips = run_down(self.down_blocks, x, inputs)
        x = run_mid(self.mid_block, x, inputs)
        if control is not None:
            skips = [skip + residual for skip, residual in zip(skips, control.skips, strict=True)]
            x = x + control.middle
        x = run_up(self.up_blocks, x, skips, inputs)
        over_clip = self.config.image_norm_over_clip and motion
        x = norm_over_clip(self.conv_norm_out, x, frames) if over_clip else self.conv_norm_out(x)
        return clips(self.conv_out(silu_(x)), frames)

    def _embed(self, step_B: Tensor, added_BV: Tensor | None) -> Tensor:
        """Embed the noise level and SDXL's pooled prompt and sizes, [B, E]; sinusoids are always float32."""
        dtype = self.conv_in.weight.dtype
        emb_BE = self.time_embedding(sinusoidal(step_B, self.config.channels[0]).to(dtype))
        if self.add_embedding is None or added_BV is None:
            return emb_BE
        return emb_BE + self.add_embedding(added_BV.to(dtype))


class ClipResBlock(ResBlock):
    """A residual block whose norms cover ``frames`` frames of a clip (v1, PIA, HotShot-XL); per image without it."""

    def forward(
        self, x_NCHW: Tensor, emb_BE: Tensor | None = None, frames: int | None = None, *, overwrite: bool = False
    ) -> Tensor:
        if frames is None:
            return super().forward(x_NCHW, emb_BE, overwrite=overwrite)
        h = conv_after_silu(self.conv1, norm_over_clip(self.norm1, x_NCHW, frames))
        if self.time_emb_proj is not None and emb_BE is not None:
            h = add_(h, self.time_emb_proj(emb_BE).repeat_interleave(frames, dim=0)[:, :, None, None])
        h = conv_after_silu(self.conv2, norm_over_clip(self.norm2, h, frames))
        return self.added(x_NCHW, h, overwrite)


class MotionLevel(UNetLevel[MotionBlockInputs]):
    """A resolution level with an optional motion module after each residual block and its transformer."""

    def __init__(
        self,
        resnets: Sequence[ResBlock],
        attentions: Sequence[Transformer],
        motions: Sequence[MotionModule],
        *,
        down: Downsample | None = None,
        up: Upsample | None = None,
    ) -> None:
        super().__init__(resnets, attentions)
        self.motion_modules = nn.ModuleList(motions)
        self.end(down, up)

    def forward(self, index: int, x_NCHW: Tensor, inputs: MotionBlockInputs) -> Tensor:
        """Run residual block ``index``, its transformer and its motion module."""
        x_NCHW = super().forward(index, x_NCHW, inputs)
        if inputs.motion and len(self.motion_modules):
            module = cast(MotionModule, self.motion_modules[index])
            x_NCHW = module(with_input_grad(module.norm, x_NCHW), inputs.frames, inputs.motion_control)
        return x_NCHW

    def residual(self, index: int, x_NCHW: Tensor, inputs: MotionBlockInputs) -> Tensor:
        block = self.resnets[index]
        if isinstance(block, ClipResBlock) and inputs.motion:
            return block(x_NCHW, inputs.emb_BE, inputs.frames)
        return super().residual(index, x_NCHW, inputs)

    def attention(self, index: int, x_NCHW: Tensor, inputs: MotionBlockInputs) -> Tensor:
        if not inputs.image_prompts:
            return super().attention(index, x_NCHW, inputs)
        return self.attentions[index](x_NCHW, inputs.context_RLC, inputs.image_prompts)


# ---------------------------------------------------------------------------------------- building


def down_level(config: Config, level: int, *, double: bool = True) -> MotionLevel:
    """An encoder level; ``double`` gives its motion modules two attention layers (SparseCtrl's have one)."""
    out = config.channels[level]
    return MotionLevel(
        *builder(config).down(level),
        _motions(config, out, config.layers, double=double),
        down=Downsample(out) if level < len(config.channels) - 1 else None,
    )


def mid_level(config: Config, motion: bool) -> MotionLevel:
    """The middle block."""
    return MotionLevel(*builder(config).middle(), _motions(config, config.channels[-1], int(motion)))


def _up(config: Config, level: int) -> MotionLevel:
    out = config.channels[level]
    return MotionLevel(
        *builder(config).up(level),
        _motions(config, out, config.layers + 1),
        up=Upsample(out) if level else None,
    )


def first_frame_layer(config: Config) -> nn.Conv2d:
    """PIA's input channels of the first convolution: the mask and the first frame; the image model keeps its own."""
    return nn.Conv2d(1 + config.latent_channels, config.channels[0], 3, padding=1, bias=False)


def builder(config: Config) -> BlockBuilder:
    """Builds image blocks with the config's norms and image prompts."""
    resnet = ClipResBlock if config.image_norm_over_clip else ResBlock
    if not config.adapters:
        return BlockBuilder(config, resnet)
    block = partial(ImagePromptBlock, adapters=len(config.adapters))
    return BlockBuilder(config, resnet, partial(Transformer, block=block))


def _motions(config: Config, width: int, count: int, *, double: bool = True) -> list[MotionModule]:
    if config.motion == "none":
        return []
    return [
        MotionModule(
            width,
            config.motion_heads,
            config.positions,
            over_clip=config.motion_norm_over_clip,
            double=double,
            stretch=config.stretch,
        )
        for _ in range(count)
    ]
