"""The networks of Stable Video Diffusion (Blattmann et al. 2023, §4 and appendix D): video U-Net, codec, image encoder.

Letters: B clips, T frames, N = B·T images, C channels, H W latent rows and columns, L context tokens, V scalars,
E width of the embedding of the noise level.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import cast

import torch
from torch import Tensor, nn

from kinema.conditioning.clip_vision import ClipVision
from kinema.families.svd.config import Config
from kinema.families.svd.decoder import Autoencoder
from kinema.families.svd.layers import VideoResBlock, VideoTransformer
from kinema.nn.embeddings import sinusoidal
from kinema.nn.ldm_unet import Downsample, TimestepEmbedding, Upsample, export_contiguous, group_norm, silu_
from kinema.schema import BadRequest

OFFICIAL_EPS, DIFFUSERS_EPS = 1e-5, 1e-6


class SVD(nn.Module):
    """The three networks, named as the folders of a diffusers checkpoint. Only ``unet`` is trained."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.unet = VideoUNet(config)
        self.vae = Autoencoder(config)
        self.image_encoder = ClipVision(
            width=config.clip_width,
            layers=config.clip_layers,
            heads=config.clip_heads,
            mlp=config.clip_mlp,
            patch=config.clip_patch,
            side=config.clip_side,
            projection=config.context,
        )
        export_contiguous(self)
        self.vae.requires_grad_(False)
        self.image_encoder.requires_grad_(False)
        for name, parameter in self.unet.named_parameters():
            # The context is a single token, so cross-attention ignores the query: these parameters get no gradient.
            if ".attn2.to_q." in name or ".attn2.to_k." in name or _norm_of_cross_attention(name):
                parameter.requires_grad_(False)


def _norm_of_cross_attention(name: str) -> bool:
    return "transformer_blocks." in name and ".norm2." in name


class VideoUNet(nn.Module):
    """``forward(z, c_noise, context, scalars) -> raw output`` B×4×T×H×W (v-prediction at alpha = 1).

    z B×8×T×H×W is the scaled noisy latents concatenated with the image latents. ``c_noise`` [B] is ln(sigma) / 4;
    ``context_BLC`` the image embedding; ``scalars_BTV`` the values of `Config.scalars`, with T = 1 where all frames
    share them. Frames marked in ``image_only_BT`` (bool) are separate images: temporal layers add nothing to them, but
    other frames still attend to them.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels, emb = config.channels, 4 * config.channels[0]
        self.config = config
        self.conv_in = nn.Conv2d(2 * config.latent_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], emb)
        self.add_embedding = TimestepEmbedding(sum(width for _, width in config.scalars), emb)
        self.down_blocks = nn.ModuleList(_down(config, level) for level in range(len(channels)))
        self.mid_block = _middle(config)
        self.up_blocks = nn.ModuleList(_up(config, level) for level in reversed(range(len(channels))))
        self.conv_norm_out = group_norm(channels[0], OFFICIAL_EPS)
        self.conv_out = nn.Conv2d(channels[0], config.latent_channels, 3, padding=1)

    def forward(
        self,
        z_BCTHW: Tensor,
        c_noise_B: Tensor,
        context_BLC: Tensor,
        scalars_BTV: Tensor,
        image_only_BT: Tensor | None = None,
    ) -> Tensor:
        b, c, frames, height, width = z_BCTHW.shape
        if c != self.conv_in.in_channels:
            raise BadRequest(f"the U-Net input has {c} channels; expected {self.conv_in.in_channels}")
        emb_BTE = silu_(self._embed(c_noise_B, scalars_BTV))
        # Channels-last from here on: one copy instead of one per layer.
        x = self.conv_in(z_BCTHW.permute(0, 2, 3, 4, 1).reshape(b * frames, height, width, c).permute(0, 3, 1, 2))
        skips = [x]
        for level in cast(Sequence[UNetLevel], self.down_blocks):
            for index in range(len(level.resnets)):
                x = level(index, x, emb_BTE, context_BLC, frames, image_only_BT)
                skips.append(x)
            if level.downsamplers is not None:
                x = level.downsamplers[0](x)
                skips.append(x)
        x = self.mid_block.resnets[0](x, emb_BTE, frames, image_only_BT)
        x = self.mid_block.attentions[0](x, context_BLC, frames, image_only_BT)
        x = self.mid_block.resnets[1](x, emb_BTE, frames, image_only_BT)
        for level in cast(Sequence[UNetLevel], self.up_blocks):
            for index in range(len(level.resnets)):
                x = level(index, torch.cat([x, skips.pop()], dim=1), emb_BTE, context_BLC, frames, image_only_BT)
            if level.upsamplers is not None:
                x = level.upsamplers[0](x, size=skips[-1].shape[-2:])
        x = self.conv_out(silu_(self.conv_norm_out(x)))
        return x.permute(0, 2, 3, 1).reshape(b, frames, height, width, -1).permute(0, 4, 1, 2, 3)

    def _embed(self, c_noise_B: Tensor, scalars_BTV: Tensor) -> Tensor:
        """Embed noise level and scalars, [B, T or 1, E]; sinusoids are computed in float32 for any weight dtype."""
        dtype = self.conv_in.weight.dtype
        level_BE = self.time_embedding(sinusoidal(c_noise_B, self.config.channels[0]).to(dtype))
        waves = [sinusoidal(scalars_BTV[..., i], width) for i, (_, width) in enumerate(self.config.scalars)]
        return level_BE[:, None] + self.add_embedding(torch.cat(waves, dim=-1).to(dtype))


class UNetLevel(nn.Module):
    """One resolution level of the U-Net: residual blocks, each followed by a transformer if the level has attention."""

    def __init__(
        self,
        resnets: Sequence[VideoResBlock],
        attentions: Sequence[VideoTransformer] = (),
        *,
        down: Downsample | None = None,
        up: Upsample | None = None,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.downsamplers = nn.ModuleList([down]) if down else None
        self.upsamplers = nn.ModuleList([up]) if up else None

    def forward(  # noqa: PLR0917 (the blocks' arguments, passed on)
        self,
        index: int,
        x_NCHW: Tensor,
        emb_BTE: Tensor,
        context_BLC: Tensor,
        frames: int,
        image_only_BT: Tensor | None,
    ) -> Tensor:
        """Run residual block ``index`` and its transformer."""
        x_NCHW = self.resnets[index](x_NCHW, emb_BTE, frames, image_only_BT)
        if not self.attentions:
            return x_NCHW
        return self.attentions[index](x_NCHW, context_BLC, frames, image_only_BT)


def _down(config: Config, level: int) -> UNetLevel:
    out, attends = config.channels[level], level < len(config.channels) - 1
    first = config.channels[max(level - 1, 0)]
    eps = DIFFUSERS_EPS if config.norm_eps == "diffusers" and attends else OFFICIAL_EPS
    emb = 4 * config.channels[0]
    return UNetLevel(
        [VideoResBlock(first if i == 0 else out, out, emb, eps) for i in range(config.layers)],
        [_transformer(config, level) for _ in range(config.layers)] if attends else [],
        down=Downsample(out) if attends else None,
    )


def _middle(config: Config) -> UNetLevel:
    width, emb = config.channels[-1], 4 * config.channels[0]
    resnets = [VideoResBlock(width, width, emb, OFFICIAL_EPS) for _ in range(2)]
    return UNetLevel(resnets, [_transformer(config, len(config.channels) - 1)])


def _up(config: Config, level: int) -> UNetLevel:
    """Build an up level. Its inputs are the output of the level below and the skips, the last of the level above."""
    top = len(config.channels) - 1
    out, emb = config.channels[level], 4 * config.channels[0]
    eps = DIFFUSERS_EPS if config.norm_eps == "diffusers" else OFFICIAL_EPS
    below = [config.channels[min(level + 1, top)]] + [out] * config.layers
    skips = [out] * config.layers + [config.channels[max(level - 1, 0)]]
    return UNetLevel(
        [VideoResBlock(x + skip, out, emb, eps) for x, skip in zip(below, skips, strict=True)],
        [_transformer(config, level) for _ in range(config.layers + 1)] if level < top else [],
        up=Upsample(out) if level else None,
    )


def _transformer(config: Config, level: int) -> VideoTransformer:
    return VideoTransformer(config.channels[level], config.heads[level], config.context)


def blocks(model: nn.Module) -> Sequence[nn.Module]:
    """Return the repeated blocks of the image encoder and the U-Net, in running order."""
    unet, encoder = cast(VideoUNet, model.unet), model.image_encoder
    result: list[nn.Module] = [*encoder.vision_model.encoder.layers] if isinstance(encoder, ClipVision) else []
    for level in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        pairs = zip_longest(level.resnets, level.attentions)
        result += [block for pair in pairs for block in pair if block is not None]
    return result
