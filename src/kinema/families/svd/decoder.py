"""The codec: a KL image encoder, and a decoder with temporal layers that removes flicker (appendix D).

Letters: B clips, T frames, N = B·T images, C channels, H W rows and columns, S places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from kinema import heap
from kinema.cancel import checkpoint
from kinema.families.svd.config import Config
from kinema.families.svd.layers import Mixer, Scratch, TemporalResBlock, conv_over_time, fold, over_time, unfold
from kinema.nn.ldm_unet import ResBlock, Upsample, group_norm, silu_, upsample_2x
from kinema.vae import strips
from kinema.vae.kl2d import EPS, Decoder, Encoder, ResolutionBlocks, SpaceAttention
from kinema.vae.latent_rgb import LatentRGB, published
from kinema.vae.precision import upcast
from kinema.vae.tiling import FRAMES, by_images, decode_blended, decode_tiled

TEMPORAL_EPS = 1e-5


class Autoencoder(nn.Module):
    """Encoder, ``quant_conv`` and a temporal or image decoder; SVD's image decoder has a ``post_quant_conv``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels, layers, latent = config.vae_channels, config.vae_layers, config.latent_channels
        self.stride = config.stride
        self.encoder = Encoder(channels, layers, latent)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        temporal = config.decoder == "temporal"
        self.decoder = TemporalDecoder(channels, layers, latent) if temporal else Decoder(channels, layers, latent)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if config.post_quant else None

    def encode(self, image_NCHW: Tensor) -> Tensor:
        """Return the mode of the unscaled latents, N×c×h×w."""
        return self.moments(image_NCHW).chunk(2, dim=1)[0]

    def moments(self, image_NCHW: Tensor) -> Tensor:
        """Return mean and log-variance of the unscaled latents, N×2c×h×w; the latter in [-30, 20], as in training."""
        growth = self.encoder.conv_in.out_channels // 3
        moments = by_images(lambda x: self.quant_conv(self.encoder(x)), image_NCHW, growth)
        mean, log_variance = moments.chunk(2, dim=1)
        return torch.cat([mean, log_variance.clamp(-30, 20)], dim=1)

    def decode(self, z_NCHW: Tensor, frames: int) -> Tensor:
        """Decode unscaled latents to pixels N×3×H×W; every ``frames`` consecutive images are one clip."""
        if isinstance(self.decoder, TemporalDecoder):
            return self.decoder(z_NCHW, frames)
        if self.post_quant_conv is not None:
            z_NCHW = self.post_quant_conv(z_NCHW)
        growth = 4 ** (len(self.decoder.up_blocks) - 1) * self.decoder.conv_out.in_channels // z_NCHW.shape[1]
        return by_images(self.decoder, z_NCHW, growth)


class TemporalDecoder(nn.Module):
    """The image decoder with a temporal block after each residual block, and a final temporal convolution.

    Spatial layers process a few images at a time, temporal layers whole clips in strips of places: the same result in
    less memory, and faster, because intermediate results stay in the cache. At most two feature maps of the whole clip
    are in memory.
    """

    def __init__(self, channels: tuple[int, ...], layers: int, latent: int) -> None:
        super().__init__()
        last = len(channels) - 1
        self.conv_in = nn.Conv2d(latent, channels[-1], 3, padding=1)
        self.mid_block = VideoMiddle(channels[-1], layers)
        self.up_blocks = nn.ModuleList(
            ResolutionBlocks(
                [
                    VideoBlock(channels[min(i + 1, last)] if j == 0 else channels[i], channels[i])
                    for j in range(layers + 1)
                ],
                up=Upsample(channels[i]) if i else None,
            )
            for i in reversed(range(len(channels)))
        )
        self.conv_norm_out = group_norm(channels[0], EPS)
        self.conv_out = nn.Conv2d(channels[0], 3, 3, padding=1)
        self.time_conv_out = conv_over_time(3)

    def forward(self, z_NCHW: Tensor, frames: int) -> Tensor:
        x = self.conv_in(z_NCHW.contiguous(memory_format=torch.channels_last))
        x = self.mid_block(x, frames)
        up: Upsample | None = None
        for level in cast(Sequence[Any], self.up_blocks):
            scratch = Scratch()  # one per resolution level, released before larger maps are allocated
            if x.is_cpu:
                heap.give_back()
            for block in level.resnets:
                x = block.over_space(x, up, scratch)  # frees the previous map before temporal layers allocate foreign
                up = None
                checkpoint()
                x = block.over_time(x, frames, scratch)
            up = level.upsamplers[0] if level.upsamplers is not None else None
        x = by_images(lambda part: self.conv_out(silu_(self.conv_norm_out(part))), x)
        return unfold(over_time(self.time_conv_out, fold(x, frames)), x.shape[2])


class VideoMiddle(nn.Module):
    """Residual blocks with spatial attention in between."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(VideoBlock(width, width) for _ in range(layers))
        self.attentions = nn.ModuleList([SpaceAttention(width)])

    def forward(self, x_NCHW: Tensor, frames: int) -> Tensor:
        x_NCHW = self.resnets[0](x_NCHW, frames)
        for attention, block in zip(self.attentions, self.resnets[1:], strict=False):
            x_NCHW = block(by_images(attention, x_NCHW, overwrite=True), frames)
        return x_NCHW


class VideoBlock(nn.Module):
    """A spatial residual block, a temporal one, and their blend, in the opposite sense to the U-Net.

    Here ``mix_factor`` is the share of the temporal estimate (initially 0, which is a half).
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.spatial_res_block = ResBlock(channels, out, eps=EPS)
        self.temporal_res_block = TemporalResBlock(out, None, TEMPORAL_EPS)
        self.time_mixer = Mixer(0.0, reverse=True)

    def forward(self, x_NCHW: Tensor, frames: int) -> Tensor:
        """Without gradients, x may be overwritten."""
        return self.over_time(self.over_space(x_NCHW), frames)

    def over_space(self, x_NCHW: Tensor, up: Upsample | None = None, scratch: Scratch | None = None) -> Tensor:
        """Run the spatial block, after upsampling each image with the previous level's ``up`` if given.

        Without gradients, x may be overwritten.
        """
        block, growth = self.spatial_res_block, 1 if up is None else 4
        plain = up is None or (type(up.conv) is nn.Conv2d and not (up._forward_hooks or up.conv._forward_hooks))
        if plain and strips.pays_off(block, growth * x_NCHW[0].numel(), x_NCHW):
            return self._in_strips(x_NCHW, up, scratch or Scratch())

        def layer(x: Tensor) -> Tensor:
            return block(x if up is None else up(x), overwrite=True)

        return by_images(layer, x_NCHW, growth, overwrite=True)

    def _in_strips(self, x_NCHW: Tensor, up: Upsample | None, scratch: Scratch) -> Tensor:
        """As `over_space`, in strips; ``scratch`` holds an image's upsampled map, followed by the block's inner map."""
        block, (n, channels, height, width) = self.spatial_res_block, x_NCHW.shape
        if up is not None:
            height, width = 2 * height, 2 * width
        x_NHWC = x_NCHW.permute(0, 2, 3, 1).contiguous()
        overwrite = up is None and block.conv_shortcut is None
        out_NHWK = x_NHWC if overwrite else x_NHWC.new_empty(n, height, width, block.conv2.out_channels)
        enlarged = 0 if up is None else channels * height * width
        room = scratch.take(enlarged + out_NHWK[0].numel(), x_NHWC)
        run = strips.residual(block, height, width)
        for image_1HWC, out_HWK in zip(x_NHWC.split(1), out_NHWK, strict=True):
            image_1CHW = strips.as_images(image_1HWC)
            if up is not None:
                image_1CHW = upsample_2x(up.conv, image_1CHW, room[:enlarged])
            run(image_1CHW[0].permute(1, 2, 0), out_HWK, room[enlarged:])
        return out_NHWK.permute(0, 3, 1, 2)

    def over_time(self, x_NCHW: Tensor, frames: int, scratch: Scratch | None = None) -> Tensor:
        share = self.time_mixer.temporal().to(x_NCHW.dtype)
        return unfold(self.temporal_res_block.add_to(fold(x_NCHW, frames), share, None, scratch), x_NCHW.shape[2])


# --------------------------------------------------------------------------------------------- codec


@dataclass(frozen=True)
class SVDCodec:
    """Encodes pixels B×3×T×H×W in [-1, 1] to latents B×4×T×h×w of about unit variance, and decodes them."""

    vae: Autoencoder
    scale: float
    chunk: int | None = None

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        frames = video_BCTHW.shape[2]
        images = video_BCTHW.transpose(1, 2).flatten(0, 1)
        # PyTorch uses different kernels for one image than for several; duplicating a single image avoids a mismatch.
        paired = images.repeat(2, 1, 1, 1) if len(images) == 1 else images
        z_NCHW = upcast(self.vae, self.vae.encode, paired)[: len(images)] * self.scale
        return z_NCHW.unflatten(0, (-1, frames)).transpose(1, 2)

    def decode(self, z_BCTHW: Tensor, chunk: int | None = None, *, overlap: int = 0, tile: int | None = None) -> Tensor:
        """Decode ``chunk`` frames of each clip at a time (by default the model's setting, or all frames).

        Norms and temporal layers cover only a chunk, so the clip jumps at chunk borders unless chunks share ``overlap``
        frames, which are cross-faded. ``tile`` decodes in cross-faded squares of that many latent cells.
        """
        chunk = chunk or self.chunk or z_BCTHW.shape[2]

        def part(z: Tensor) -> Tensor:
            return self._decode(z) if tile is None else decode_tiled(self._decode, z, tile, self.vae.stride)

        return decode_blended(part, z_BCTHW, FRAMES, chunk, min(overlap, chunk - 1))

    def leaner(self, frames: int, height: int, width: int) -> Sequence[Mapping[str, int]]:
        """Options of `decode` that need less memory for a clip of this latent size, the mildest first."""
        ways = [{"chunk": c, "overlap": c // 4} for c in (8, 4) if c < frames]
        few = ways[-1] if ways else {}
        ways += [{**few, "tile": tile} for tile in (64, 32, 16) if tile < max(height, width)]
        return ways

    def rgb(self, channels: int) -> LatentRGB | None:
        return published(channels, self.vae.stride, self.scale)

    def _decode(self, z_BCTHW: Tensor) -> Tensor:
        b, _, frames = z_BCTHW.shape[:3]
        x_NCHW = self.vae.decode(z_BCTHW.transpose(1, 2).flatten(0, 1) / self.scale, frames)
        return x_NCHW.unflatten(0, (b, frames)).transpose(1, 2)
