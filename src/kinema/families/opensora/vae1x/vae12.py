"""The codec of Open-Sora 1.2 (Zheng et al. 2024, section 3.1): 4×8×8 pixels to 4 channels.

An image codec, SDXL's, codes every frame; a causal one then codes the image latents of 17 frames at a time to 5, each
run of frames on its own. A run is padded with zeros in front to whole cells of 4 frames, so that the first frame of 17
has a cell of its own, and so has a lone image. Parameter names are those of the published file.

Letters: B batch, C channels, T frames, H W rows and columns, t h w those of latents; N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.cancel import checkpoint
from kinema.families.opensora.vae1x.zero_causal import GROUPS, CausalConv3d, after_silu, posterior, residual
from kinema.grid import FrameGrid
from kinema.nn.meta import placed
from kinema.vae.kl2d import Autoencoder

IMAGE_SCALE = 0.18215
"""By which image latents are multiplied: Stable Diffusion's, not SDXL's 0.13025, as in training."""
EPS = 1e-5


@dataclass(frozen=True)
class Sizes12:
    """Sizes; the defaults are the published ones (83,653,863 in 248 tensors, 309,687,144 in 267)."""

    latent: int = 4
    """Channels of image latents and of the codec's."""
    image_channels: tuple[int, ...] = (128, 256, 512, 512)
    image_layers: int = 2
    widths: tuple[int, ...] = (128, 256, 256, 512)
    layers: int = 4
    temporal: tuple[int, ...] = field(default=(1, 2), metadata={"least": 0})
    """The levels after which (before which, in the decoder) the number of frames changes."""
    run: int = 17
    """Frames that are encoded together."""
    shift: tuple[float, ...] = (-0.10, 0.34, 0.27, 0.98)
    scale: tuple[float, ...] = (3.85, 2.32, 2.33, 3.06)
    """Latents are ``(z - shift) / scale``, channel by channel."""

    @property
    def stride(self) -> tuple[int, int, int]:
        """Pixels of one latent cell along (time, height, width)."""
        side = 2 ** (len(self.image_channels) - 1)
        return (2 ** len(self.temporal), side, side)

    @property
    def time(self) -> FrameGrid:
        return FrameGrid(self.stride[0], causal=True, run=self.run)


class ResBlock(nn.Module):
    """Two convolutions without bias, added to the input."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels, EPS)
        self.conv1 = CausalConv3d(channels, out, bias=False)
        self.norm2 = nn.GroupNorm(GROUPS, out, EPS)
        self.conv2 = CausalConv3d(out, out, bias=False)
        self.conv3 = CausalConv3d(channels, out, 1, bias=False) if channels != out else None

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return residual(x_BCTHW, (self.norm1, self.conv1), (self.norm2, self.conv2), self.conv3)


def _blocks(channels: int, out: int, layers: int) -> nn.ModuleList:
    return nn.ModuleList(ResBlock(channels if i == 0 else out, out) for i in range(layers))


def _through(blocks: nn.Module, x_BCTHW: Tensor) -> Tensor:
    for block in blocks.children():
        x_BCTHW = block(x_BCTHW)
    return x_BCTHW


class TemporalEncoder(nn.Module):
    """``forward(image latents B×c×4k×h×w) -> B×2c×k×h×w``, before ``quant_conv``."""

    def __init__(self, sizes: Sizes12) -> None:
        super().__init__()
        widths, last = sizes.widths, sizes.widths[-1]
        self.conv_in = CausalConv3d(sizes.latent, widths[0], bias=False)
        self.block_res_blocks = nn.ModuleList(
            _blocks(widths[max(i - 1, 0)], width, sizes.layers) for i, width in enumerate(widths)
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(width, width, stride=(2, 1, 1), before=1) if i in sizes.temporal else nn.Identity()
            for i, width in enumerate(widths[:-1])
        )
        self.res_blocks = _blocks(last, last, sizes.layers)
        self.norm1 = nn.GroupNorm(GROUPS, last, EPS)
        self.conv2 = CausalConv3d(last, 2 * sizes.latent, 1)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        x = self.conv_in(x_BCTHW)
        for i, blocks in enumerate(self.block_res_blocks):
            x = _through(blocks, x)
            x = self.conv_blocks[i](x) if i < len(self.conv_blocks) else x
        return after_silu(self.conv2, self.norm1, _through(self.res_blocks, x))


class TemporalDecoder(nn.Module):
    """``forward(latents B×c×k×h×w) -> image latents B×c×4k×h×w``."""

    def __init__(self, sizes: Sizes12) -> None:
        super().__init__()
        widths, last = sizes.widths, sizes.widths[-1]
        self.conv1 = CausalConv3d(sizes.latent, last)
        self.res_blocks = _blocks(last, last, sizes.layers)
        self.block_res_blocks = nn.ModuleList(
            _blocks((*widths, last)[i + 1], width, sizes.layers) for i, width in enumerate(widths)
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(width, 2 * width) if i in sizes.temporal else nn.Identity()
            for i, width in enumerate(widths[1:])
        )
        self.norm1 = nn.GroupNorm(GROUPS, widths[0], EPS)
        self.conv_out = CausalConv3d(widths[0], sizes.latent)

    def forward(self, z_BCTHW: Tensor) -> Tensor:
        x = _through(self.res_blocks, self.conv1(z_BCTHW))
        for i in reversed(range(len(self.block_res_blocks))):
            x = _through(self.block_res_blocks[i], x)
            if i and not isinstance(self.conv_blocks[i - 1], nn.Identity):
                x = rearrange(self.conv_blocks[i - 1](x), "b (c s) t h w -> b c (t s) h w", s=2)
        return after_silu(self.conv_out, self.norm1, x)


class TemporalVAE(nn.Module):
    """A run of image latents to a quarter of the frames and back."""

    def __init__(self, sizes: Sizes12) -> None:
        super().__init__()
        latent = sizes.latent
        self.encoder = TemporalEncoder(sizes)
        self.quant_conv = CausalConv3d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = CausalConv3d(latent, latent, 1)
        self.decoder = TemporalDecoder(sizes)
        self.stride = sizes.stride[0]

    def moments(self, x_BCTHW: Tensor) -> Tensor:
        """Mean and log-variance of the latents, B×2c×t×h×w."""
        padded = F.pad(x_BCTHW, (0, 0, 0, 0, -x_BCTHW.shape[2] % self.stride, 0))
        return self.quant_conv(self.encoder(padded))

    def decode(self, z_BCTHW: Tensor, frames: int) -> Tensor:
        """Image latents of the last ``frames`` frames that these latents stand for."""
        return self.decoder(self.post_quant_conv(z_BCTHW))[:, :, -frames % self.stride :]


class ImageVAE(nn.Module):
    """The image codec, one name deeper, as published."""

    def __init__(self, sizes: Sizes12) -> None:
        super().__init__()
        self.module = Autoencoder(sizes.image_channels, sizes.image_layers, sizes.latent)

    def encode(self, video_BCTHW: Tensor, generator: torch.Generator | None) -> Tensor:
        """Image latents B×c×T×h×w, a few frames at a time."""
        moments_NCHW = self.module.moments(video_BCTHW.transpose(1, 2).flatten(0, 1))
        return _clips(posterior(moments_NCHW, generator), len(video_BCTHW)) * IMAGE_SCALE

    def decode(self, x_BCTHW: Tensor) -> Tensor:
        """Pixels B×3×T×H×W, a few frames at a time."""
        return _clips(self.module.decode(x_BCTHW.transpose(1, 2).flatten(0, 1) / IMAGE_SCALE), len(x_BCTHW))


def _clips(x_NCHW: Tensor, count: int) -> Tensor:
    return x_NCHW.unflatten(0, (count, -1)).transpose(1, 2)


class VideoVAE12(nn.Module):
    """Image codec, then temporal codec (393,341,007 in 517 tensors as published, the normalisation among them)."""

    def __init__(self, sizes: Sizes12 = Sizes12()) -> None:  # noqa: B008 (frozen)
        super().__init__()
        self.spatial_vae = ImageVAE(sizes)
        self.temporal_vae = TemporalVAE(sizes)
        self.register_buffer("scale", _channels(sizes.scale))
        self.register_buffer("shift", _channels(sizes.shift))
        self.sizes, self.stride, self.time = sizes, sizes.stride, sizes.time

    scale: Tensor
    shift: Tensor

    def encode(self, video_BCTHW: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents B×c×t×h×w of about unit variance, for any number of frames (`Sizes12.time`).

        They are the mode of both posteriors; with ``generator`` a sample of both, as in the published sampling.
        """
        x = self.spatial_vae.encode(video_BCTHW, generator)
        runs = []
        for run in self.time.runs(x.shape[2]):
            checkpoint()
            runs.append(posterior(self.temporal_vae.moments(x[:, :, run.start : run.stop]), generator))
        return (torch.cat(runs, dim=2) - self.shift) / self.scale

    def decode(self, z_BCTHW: Tensor, frames: int | None = None) -> Tensor:
        """``frames`` pixel frames; by default the most that the latents stand for, but one of a lone latent frame.

        Raises ValueError for a number of frames that has another number of latents.
        """
        return self.spatial_vae.decode(self.image_latents(z_BCTHW, frames))

    def image_latents(self, z_BCTHW: Tensor, frames: int | None = None) -> Tensor:
        """Image latents B×c×T×h×w, for each frame that `decode` returns."""
        cells = z_BCTHW.shape[2]
        if frames is None:
            frames = 1 if cells == 1 else self.time.frames(cells)
        if self.time.latent(frames) != cells:
            raise ValueError(f"{frames} frames have {self.time.latent(frames)} latent frames; given are {cells}")
        z, start, runs = z_BCTHW * self.scale + self.shift, 0, []
        for run in self.time.runs(frames):
            checkpoint()
            stop = start + self.time.latent(len(run))
            runs.append(self.temporal_vae.decode(z[:, :, start:stop], len(run)))
            start = stop
        return torch.cat(runs, dim=2)


def _channels(values: Sequence[float]) -> Tensor:
    return placed((1, len(values), 1, 1, 1), lambda: torch.tensor(values).reshape(1, -1, 1, 1, 1))
