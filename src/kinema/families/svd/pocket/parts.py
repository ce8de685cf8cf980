"""The pocket model's networks: an SVD small enough to train completely on two CPU cores.

The U-Net is SVD's, with fewer channels. The autoencoder encodes 8×8 pixels as one latent cell of 16 channels; a linear
path parallel to its convolutions can learn principal components, which leaves only details to the convolutions.

Letters: N images, C channels, H W pixel rows and columns, h w latent ones.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.families.svd.config import Config
from kinema.families.svd.layers import VideoResBlock, VideoTransformer
from kinema.families.svd.model import VideoUNet
from kinema.nn.ldm_unet import ResBlock, group_norm, silu_
from kinema.nn.linear import Linear
from kinema.vae.running import update_statistics

EPS = 1e-6
MIN_LOG_VARIANCE, MAX_LOG_VARIANCE = -12.0, 4.0


class PocketSVD(nn.Module):
    """The three networks, named as in `model.SVD`. Training stage ``codec`` trains the codec, others the rest."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.unet = VideoUNet(config)
        self.vae = PocketAutoencoder(config)
        self.image_encoder = PocketVision(config)
        zero_branches(self.unet)
        trains_codec = config.stage == "codec"
        self.vae.requires_grad_(trains_codec)
        self.image_encoder.requires_grad_(not trains_codec)
        for name, parameter in self.unet.named_parameters():
            # As in `model.SVD`: with one context token, queries, keys and their norm get no gradient.
            idle = any(part in name for part in (".attn2.to_q.", ".attn2.to_k."))
            idle = idle or ("transformer_blocks." in name and ".norm2." in name)
            parameter.requires_grad_(not trains_codec and not idle)


def zero_branches(unet: VideoUNet) -> None:
    """Initialise residual blocks and transformers as the identity and the output as zero, as in latent diffusion."""
    layers: list[nn.Module] = [unet.conv_out]
    for module in unet.modules():
        if isinstance(module, VideoResBlock):
            layers += [module.spatial_res_block.conv2, module.temporal_res_block.conv2]
        elif isinstance(module, VideoTransformer):
            layers.append(module.proj_out)
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


class PocketAutoencoder(nn.Module):
    """Encodes single images as latents of zero mean and unit variance per channel, and decodes them.

    ``mean`` and ``variance`` [C] are running statistics, updated only while the autoencoder is trained.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        latent, stride = config.latent_channels, config.stride
        self.stride = stride
        self.encoder = _Encoder(config.patch, config.vae_channels, config.vae_layers, latent, stride)
        widest = (max(config.vae_channels),) * len(config.vae_channels)  # decoding runs once, encoding at every step
        self.decoder = _Decoder(config.patch, widest, config.vae_layers + 1, latent, stride)
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("variance", torch.ones(latent))

    def moments(self, image_NCHW: Tensor) -> Tensor:
        """Return mean and log-variance of the latents, N×2c×h×w, normalised by the running statistics."""
        mean, log_variance = self.raw(image_NCHW).chunk(2, dim=1)
        scale = self._scale()
        return torch.cat([(mean - self._centre()) / scale, log_variance - 2 * scale.log()], dim=1)

    def encode(self, image_NCHW: Tensor) -> Tensor:
        """Return the mode of the latents, N×c×h×w."""
        return self.moments(image_NCHW).chunk(2, dim=1)[0]

    def decode(self, z_NCHW: Tensor, frames: int) -> Tensor:  # noqa: ARG002 (images are independent)
        """Decode latents to pixels N×3×H×W."""
        return self.decoder(z_NCHW * self._scale() + self._centre())

    def raw(self, image_NCHW: Tensor) -> Tensor:
        """Return the encoder's mean and log-variance, not normalised."""
        mean, log_variance = self.encoder(image_NCHW).chunk(2, dim=1)
        return torch.cat([mean, log_variance.clamp(MIN_LOG_VARIANCE, MAX_LOG_VARIANCE)], dim=1)

    def update_statistics(self, mean_NCHW: Tensor, share: float = 1.0) -> None:
        """Move the running statistics towards those of a batch of means, which is this share of an optimiser step."""
        update_statistics(self.mean, self.variance, mean_NCHW, share)

    def _centre(self) -> Tensor:
        return self.mean[:, None, None]

    def _scale(self) -> Tensor:
        return self.variance.clamp_min(1e-8).sqrt()[:, None, None]


class _Encoder(nn.Module):
    def __init__(self, patch: int, channels: tuple[int, ...], layers: int, latent: int, stride: int) -> None:  # noqa: PLR0917
        super().__init__()
        self.patch = patch
        self.direct = nn.Conv2d(3, latent, stride, stride=stride)
        self.conv_in = nn.Conv2d(3 * patch**2, channels[0], 3, padding=1)
        stages: list[nn.Module] = []
        for below, width in zip((None, *channels), channels, strict=False):
            stages += [nn.Conv2d(below, width, 2, stride=2)] if below else []
            stages += [ResBlock(width, width, eps=EPS) for _ in range(layers)]
        self.stages = nn.Sequential(*stages)
        self.norm = group_norm(channels[-1], EPS)
        self.conv_out = nn.Conv2d(channels[-1], 2 * latent, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        with torch.no_grad():
            # Low initial noise, so that the linear path learns from the first step.
            cast(Tensor, self.conv_out.bias)[latent:] = -4.0

    def forward(self, image_NCHW: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(image_NCHW, self.patch).contiguous(memory_format=torch.channels_last))
        x = self.conv_out(silu_(self.norm(self.stages(x))))
        mean, log_variance = x.chunk(2, dim=1)
        return torch.cat([mean + self.direct(image_NCHW), log_variance], dim=1)


class _Decoder(nn.Module):
    def __init__(self, patch: int, channels: tuple[int, ...], layers: int, latent: int, stride: int) -> None:  # noqa: PLR0917
        super().__init__()
        self.patch, self.stride = patch, stride
        self.direct = nn.Conv2d(latent, 3 * stride**2, 1)
        self.conv_in = nn.Conv2d(latent, channels[-1], 3, padding=1)
        stages: list[nn.Module] = []
        for width, above in zip(reversed(channels), (*reversed(channels[:-1]), None), strict=True):
            stages += [ResBlock(width, width, eps=EPS) for _ in range(layers)]
            stages += [nn.Conv2d(width, 4 * above, 1), nn.PixelShuffle(2)] if above else []
        self.stages = nn.Sequential(*stages)
        self.norm = group_norm(channels[0], EPS)
        self.conv_out = nn.Conv2d(channels[0], 3 * patch**2, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, z_NCHW: Tensor) -> Tensor:
        x = self.conv_in(z_NCHW.contiguous(memory_format=torch.channels_last))
        x = self.conv_out(silu_(self.norm(self.stages(x))))
        return F.pixel_shuffle(x, self.patch) + F.pixel_shuffle(self.direct(z_NCHW), self.stride)


class PocketVision(nn.Module):
    """Image encoder in place of CLIP: ``embed(image B×3×H×W in [-1, 1]) -> B×context``, a mean over patch features."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.clip_width
        self.patches = nn.Conv2d(3, width, config.stride, stride=config.stride)
        self.conv = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.out = Linear(2 * width, config.context)

    def embed(self, image_B3HW: Tensor) -> Tensor:
        x = F.silu(self.patches(image_B3HW.to(self.out.weight.dtype)))
        return self.out(F.silu(self.conv(x)).mean((2, 3)))
