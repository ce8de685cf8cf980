"""The KL image codec of latent diffusion (Rombach et al. 2022), with diffusers' parameter names.

Used by AnimateDiff and by Stable Video Diffusion, whose temporal decoder has the same encoder.

Letters: N images, C channels, H W pixel rows and columns, h w latent rows and columns, S spatial positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from kinema.nn.ldm_unet import Attention, Downsample, ResBlock, Upsample, add_, group_norm, silu_, to_map, tokens
from kinema.vae.latent_rgb import LatentRGB, published
from kinema.vae.precision import upcast
from kinema.vae.tiling import by_images, decode_tiled

EPS = 1e-6


class SpaceAttention(Attention):
    """Single-head spatial self-attention with a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__(width, heads=1, bias=True)
        self.group_norm = group_norm(width, EPS)

    def forward(self, x_NCHW: Tensor, context_NLC: Tensor | None = None) -> Tensor:  # noqa: ARG002 (unused)
        h_NSC = super().forward(tokens(self.group_norm(x_NCHW)))
        return add_(to_map(h_NSC, x_NCHW.shape[2]), x_NCHW)


class MiddleBlock(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(width, width, eps=EPS) for _ in range(2))
        self.attentions = nn.ModuleList([SpaceAttention(width)])

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x_NCHW)))


class ResolutionBlocks(nn.Module):
    """Residual blocks at one resolution level of images or clips, followed by the down- or upsampler."""

    def __init__(
        self, resnets: Sequence[nn.Module], *, down: nn.Module | None = None, up: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.downsamplers = nn.ModuleList([down]) if down else None
        self.upsamplers = nn.ModuleList([up]) if up else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resnets:
            x = block(x)
        for resample in self.downsamplers or self.upsamplers or ():
            x = resample(x)
        return x


class Encoder(nn.Module):
    """``forward(pixels N×3×H×W in [-1, 1]) -> mean and log-variance N×2c×h×w``, before ``quant_conv``."""

    def __init__(self, channels: Sequence[int], layers: int, latent: int) -> None:
        super().__init__()
        last = len(channels) - 1
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            ResolutionBlocks(
                [ResBlock(channels[max(i - 1, 0)] if j == 0 else out, out, eps=EPS) for j in range(layers)],
                down=Downsample(out, codec=True) if i < last else None,
            )
            for i, out in enumerate(channels)
        )
        self.mid_block = MiddleBlock(channels[-1])
        self.conv_norm_out = group_norm(channels[-1], EPS)
        self.conv_out = nn.Conv2d(channels[-1], 2 * latent, 3, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = self.conv_in(x_NCHW)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(silu_(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """``forward(latents N×c×h×w) -> pixels N×3×H×W``, each image independently."""

    def __init__(self, channels: Sequence[int], layers: int, latent: int) -> None:
        super().__init__()
        last = len(channels) - 1
        self.conv_in = nn.Conv2d(latent, channels[-1], 3, padding=1)
        self.mid_block = MiddleBlock(channels[-1])
        self.up_blocks = nn.ModuleList(
            ResolutionBlocks(
                [
                    ResBlock(channels[min(i + 1, last)] if j == 0 else channels[i], channels[i], eps=EPS)
                    for j in range(layers + 1)
                ],
                up=Upsample(channels[i]) if i else None,
            )
            for i in reversed(range(len(channels)))
        )
        self.conv_norm_out = group_norm(channels[0], EPS)
        self.conv_out = nn.Conv2d(channels[0], 3, 3, padding=1)

    def forward(self, z_NCHW: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z_NCHW))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(silu_(self.conv_norm_out(x)))


# -------------------------------------------------------------------------------------- autoencoder


class Autoencoder(nn.Module):
    """Diffusers' ``AutoencoderKL``: encoder and decoder, each with its 1×1 convolution."""

    def __init__(self, channels: Sequence[int], layers: int, latent: int) -> None:
        super().__init__()
        self.encoder = Encoder(channels, layers, latent)
        self.decoder = Decoder(channels, layers, latent)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)
        self.stride = 2 ** (len(channels) - 1)

    def encode(self, image_NCHW: Tensor) -> Tensor:
        """Return the mode of the latents, N×c×h×w, unscaled."""
        return self.moments(image_NCHW).chunk(2, dim=1)[0]

    def moments(self, image_NCHW: Tensor) -> Tensor:
        """Return mean and log-variance of the latents, N×2c×h×w, unscaled."""
        growth = self.encoder.conv_in.out_channels // image_NCHW.shape[1]
        return by_images(lambda x: self.quant_conv(self.encoder(channels_last_(x))), image_NCHW, growth)

    def decode(self, z_NCHW: Tensor) -> Tensor:
        """Decode unscaled latents to pixels N×3×H×W."""
        growth = 4 ** (len(self.decoder.up_blocks) - 1) * self.decoder.conv_out.in_channels // z_NCHW.shape[1]
        return by_images(lambda z: self.decoder(self.post_quant_conv(channels_last_(z))), z_NCHW, growth)


def channels_last_(x_NCHW: Tensor) -> Tensor:
    return x_NCHW.contiguous(memory_format=torch.channels_last)


class ImageCoder(Protocol):
    """Images N×3×H×W to unscaled latents and back; ``stride`` is the side of a latent cell in pixels."""

    stride: int

    def encode(self, image_NCHW: Tensor) -> Tensor: ...

    def decode(self, z_NCHW: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ImageCodec:
    """Pixels B×3×T×H×W in [-1, 1] to latents B×c×T×h×w of about unit variance and back, frame by frame.

    ``wide`` computes in float32 if the weights are float16 (for SDXL's, whose activations overflow float16).
    """

    vae: ImageCoder
    scale: float
    wide: bool = False

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        return self._each(lambda x: self.vae.encode(x) * self.scale, video_BCTHW)

    def decode(self, z_BCTHW: Tensor, chunk: int | None = None, *, tile: int | None = None) -> Tensor:  # noqa: ARG002
        """Decode a few frames at a time; with ``tile``, in blended square tiles of that many latent cells per side."""
        return self._whole(z_BCTHW) if tile is None else decode_tiled(self._whole, z_BCTHW, tile, self.vae.stride)

    def leaner(self, frames: int, height: int, width: int) -> Sequence[Mapping[str, int]]:  # noqa: ARG002
        """Return options that decode in less memory, by decreasing tile size."""
        return [{"tile": tile} for tile in (64, 32, 16) if tile < max(height, width)]

    def rgb(self, channels: int) -> LatentRGB | None:
        return published(channels, self.vae.stride, self.scale)

    def _whole(self, z_BCTHW: Tensor) -> Tensor:
        return self._each(lambda z: self.vae.decode(z / self.scale), z_BCTHW)

    def _each(self, function: Callable[[Tensor], Tensor], x_BCTHW: Tensor) -> Tensor:
        x_NCHW = x_BCTHW.transpose(1, 2).flatten(0, 1)
        out_NCHW = upcast(cast(nn.Module, self.vae), function, x_NCHW) if self.wide else function(x_NCHW)
        return out_NCHW.unflatten(0, (len(x_BCTHW), -1)).transpose(1, 2)
