"""ControlNet (Zhang et al. 2023, arXiv 2302.05543): a copy of the U-Net's encoder that reads a control image.

It has no motion modules and treats frames as independent images, each with its own control image. Names are those of
diffusers' ``ControlNetModel``.

Letters: B clips, T frames, N = B·T images, R rows of context, C channels, H W rows and columns.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from kinema.families.animatediff.config import Config, ControlSize, skip_widths
from kinema.families.animatediff.control.ip_adapter import per_image
from kinema.families.animatediff.control.sparse import HintEncoder, zero
from kinema.families.animatediff.unet import builder
from kinema.nn.embeddings import sinusoidal
from kinema.nn.ldm_unet import Downsample, TimestepEmbedding, add_, silu_
from kinema.nn.sd_unet import BlockInputs, Residuals, Transformer, UNetLevel, down_inputs, images, run_down, run_mid


class ControlNet(nn.Module):
    """``forward(z, hint, step, context) -> residuals`` for the U-Net's skips and middle block."""

    def __init__(self, config: Config, size: ControlSize) -> None:
        super().__init__()
        image = replace(config, motion="none", linear=size.linear, adapters=())
        channels, emb = image.channels, 4 * image.channels[0]
        self.size = size
        self.conv_in = nn.Conv2d(image.latent_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], emb)
        added = 6 * image.size_embedding
        self.add_embedding = TimestepEmbedding(added + image.pooled, emb) if added else None
        self.controlnet_cond_embedding = HintEncoder(channels[0], size.hint)
        self.down_blocks = nn.ModuleList(_down(image, level, depth) for level, depth in enumerate(size.depths))
        self.controlnet_down_blocks = nn.ModuleList(zero(nn.Conv2d(w, w, 1)) for w in skip_widths(image))
        middle = _transformers(image, len(channels) - 1, size.middle, 1)
        # diffusers' small ControlNets have no transformer in the middle and only one residual block.
        resnets = [builder(image).residual(channels[-1], channels[-1]) for _ in range(2 if middle else 1)]
        self.mid_block: UNetLevel[BlockInputs] = UNetLevel(resnets, middle)
        self.controlnet_mid_block = zero(nn.Conv2d(channels[-1], channels[-1], 1))

    def embed(self, images_BCTHW: Tensor) -> Tensor:
        """Encode control images (pixels 0 to 1) at latent size, [B·T, C, h, w]; reused at every step."""
        images_NCHW = images(images_BCTHW.flip(1) if self.size.bgr else images_BCTHW)
        return self.controlnet_cond_embedding(images_NCHW.to(self.conv_in.weight.dtype))

    def forward(  # noqa: PLR0917
        self,
        z_BCTHW: Tensor,
        hint_NCHW: Tensor,
        step_B: Tensor,
        context_RLC: Tensor,
        added_BV: Tensor | None = None,
        scale_T: Tensor | None = None,
    ) -> Residuals:
        """``hint`` is from `embed`, for one clip or the whole batch; ``scale`` is [T], or [1] for all frames."""
        dtype = self.conv_in.weight.dtype
        emb_BE = self.time_embedding(sinusoidal(step_B, self.conv_in.out_channels).to(dtype))
        if self.add_embedding is not None and added_BV is not None:
            emb_BE = emb_BE + self.add_embedding(added_BV.to(dtype))
        inputs = BlockInputs(silu_(emb_BE), context_RLC)
        x = self.conv_in(images(z_BCTHW.to(dtype)))
        x = add_(x, hint_NCHW if len(hint_NCHW) == 1 else hint_NCHW.repeat(len(x) // len(hint_NCHW), 1, 1, 1))
        x, skips = run_down(self.down_blocks, x, inputs)
        x = run_mid(self.mid_block, x, inputs) if self.size.middle is not None else self.mid_block(0, x, inputs)
        out = [conv(skip) for conv, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        maps = [*out, self.controlnet_mid_block(x)]
        if self.size.pooled:
            maps = [each.mean(dim=(2, 3), keepdim=True) for each in maps]
        if scale_T is not None:
            maps = [per_image(scale_T.to(each), len(each)) * each for each in maps]
        return Residuals(maps[:-1], maps[-1])


def _down(image: Config, level: int, depth: int | None) -> UNetLevel[BlockInputs]:
    out = image.channels[level]
    return UNetLevel(
        [builder(image).residual(into, out) for into in down_inputs(image.channels, image.layers, level)],
        _transformers(image, level, depth, image.layers),
        down=Downsample(out) if level < len(image.channels) - 1 else None,
    )


def _transformers(image: Config, level: int, depth: int | None, count: int) -> list[Transformer]:
    if depth is None:
        return []
    sizes = (image.channels[level], image.heads[level], image.context, depth, image.linear)
    return [Transformer(*sizes) for _ in range(count)]
