"""The pocket model's codec: 4k + 1 frames to k + 1 latent frames, 8×8 pixels to a cell, causal to the bit.

Norms act on single places, so unlike in HunyuanVideo's codec a latent frame depends on its own frames and earlier ones
alone: the latents of a clip's beginning are the beginning of its latents. Convolutions are split into space and time
(Tran et al. 2018, "(2+1)D") on squares of ``fold`` pixels; a linear path parallel to them can learn principal
components, which leaves only details to the convolutions.

Letters: B clips, C channels, T H W pixel frames, rows and columns, c t h w those of latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.families.opensora.config import PocketCodecConfig
from kinema.nn.linear import Linear
from kinema.vae.running import update_statistics

EPS = 1e-6
MIN_LOG_VARIANCE, MAX_LOG_VARIANCE = -12.0, 4.0


class PocketCodec(nn.Module):
    """Encodes clips as latents of zero mean and unit variance per channel, and decodes them.

    ``mean`` and ``variance`` [c] are running statistics, updated only while the codec is trained.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, config: PocketCodecConfig) -> None:
        super().__init__()
        self.stride = config.stride
        self.encoder, self.decoder = _Encoder(config), _Decoder(config)
        self.register_buffer("mean", torch.zeros(config.latent))
        self.register_buffer("variance", torch.ones(config.latent))

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        """Return the mode of the latents, B×c×t×h×w."""
        return (self.raw(video_BCTHW)[0] - self._centre()) / self._scale()

    def decode(self, z_BCTHW: Tensor) -> Tensor:
        """Decode latents to pixels B×3×T×H×W."""
        return self.decoder(z_BCTHW * self._scale() + self._centre())

    def raw(self, video_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the encoder's mean and log-variance, not normalised."""
        mean, log_variance = self.encoder(video_BCTHW).chunk(2, dim=1)
        return mean, log_variance.clamp(MIN_LOG_VARIANCE, MAX_LOG_VARIANCE)

    def update_statistics(self, mean_BCTHW: Tensor, share: float = 1.0) -> None:
        """Move the running statistics towards those of a batch of means, which is this share of an optimiser step."""
        update_statistics(self.mean, self.variance, mean_BCTHW, share)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The residual blocks of encoder and decoder."""
        return [module for module in self.modules() if isinstance(module, Block)]

    @property
    def trained(self) -> bool:
        """Whether it has met any clip in training, so that its statistics are those of latents."""
        return bool((self.variance != 1).any())

    def _centre(self) -> Tensor:
        return self.mean[:, None, None, None]

    def _scale(self) -> Tensor:
        return self.variance.clamp_min(1e-8).sqrt()[:, None, None, None]


class _Encoder(nn.Module):
    def __init__(self, config: PocketCodecConfig) -> None:
        super().__init__()
        self.config, latent, widths = config, config.latent, config.channels
        self.direct = Linear(3 * config.stride[0] * config.stride[1] ** 2, latent)
        self.conv_in = spatial(3 * config.fold**2, widths[0])
        self.fine = nn.Sequential(*(Block(widths[0]) for _ in range(config.encoding[0])))
        self.down = nn.Conv3d(widths[0], widths[1], (1, 2, 2), (1, 2, 2))
        self.halve_1 = Temporal(widths[1], widths[1], stride=2)
        self.middle = nn.Sequential(*(Block(widths[1]) for _ in range(config.encoding[1])))
        self.halve_2 = Temporal(widths[1], widths[2], stride=2)
        self.coarse = nn.Sequential(*(Block(widths[2]) for _ in range(config.encoding[2])))
        self.norm = ChannelNorm(widths[2])
        self.conv_out = nn.Conv3d(widths[2], 2 * latent, 1)
        nn.init.zeros_(self.conv_out.weight)
        with torch.no_grad():
            # Low initial noise, so that the linear path learns from the first step.
            cast(Tensor, self.conv_out.bias)[latent:] = -4.0

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        x = self.fine(self.conv_in(_channels_last(folded(video_BCTHW, 1, self.config.fold))))
        x = self.middle(self.halve_1(self.down(x)))
        x = self.coarse(self.halve_2(x))
        mean, log_variance = self.conv_out(F.silu(self.norm(x))).chunk(2, dim=1)
        time, side, _ = self.config.stride
        video = torch.cat([video_BCTHW[:, :, :1].expand(-1, -1, time - 1, -1, -1), video_BCTHW], dim=2)
        direct = self.direct(folded(video, time, side).movedim(1, -1)).movedim(-1, 1)
        return torch.cat([mean + direct, log_variance], dim=1)


class _Decoder(nn.Module):
    def __init__(self, config: PocketCodecConfig) -> None:
        super().__init__()
        self.config, latent, widths = config, config.latent, config.channels
        self.direct = Linear(latent, 3 * config.stride[0] * config.stride[1] ** 2)
        self.conv_in = spatial(latent, widths[2])
        self.coarse = nn.Sequential(*(Block(widths[2]) for _ in range(config.decoding[2])))
        self.double_1 = nn.Conv3d(widths[2], 2 * widths[1], 1)
        self.middle = nn.Sequential(*(Block(widths[1]) for _ in range(config.decoding[1])))
        self.double_2 = nn.Conv3d(widths[1], 8 * widths[0], 1)
        self.fine = nn.Sequential(*(Block(widths[0]) for _ in range(config.decoding[0])))
        self.norm = ChannelNorm(widths[0])
        self.conv_out = spatial(widths[0], 3 * config.fold**2)
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, z_BCTHW: Tensor) -> Tensor:
        x = self.coarse(self.conv_in(_channels_last(z_BCTHW)))
        x = self.middle(_channels_last(unfolded(self.double_1(x), 2, 1)))
        x = self.fine(_channels_last(unfolded(self.double_2(x), 2, 2)))
        pixels = unfolded(self.conv_out(F.silu(self.norm(x))), 1, self.config.fold)
        time, side, _ = self.config.stride
        return pixels + unfolded(self.direct(z_BCTHW.movedim(1, -1)).movedim(-1, 1), time, side)


class Block(nn.Module):
    """Norm, SiLU and a convolution in space, then the same in time, added to the input. The identity at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(width), ChannelNorm(width)
        self.conv1, self.conv2 = spatial(width, width), Temporal(width, width)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x_BCTHW)))
        return x_BCTHW + self.conv2(F.silu(self.norm2(h)))


class ChannelNorm(nn.Module):
    """Root-mean-square norm over the channels of each place, so that no place depends on another."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        inverse = x_BCTHW.float().square().mean(1, keepdim=True).add(EPS).rsqrt().to(x_BCTHW.dtype)
        return x_BCTHW * inverse * self.scale[:, None, None, None].to(x_BCTHW.dtype)


class Temporal(nn.Conv3d):
    """A convolution over three frames, the last of which is its own; before the first frame are copies of it."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__(channels, out, (3, 1, 1), (stride, 1, 1), bias=False)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        first = x_BCTHW[:, :, :1].expand(-1, -1, 2, -1, -1)
        return super().forward(torch.cat([first, x_BCTHW], dim=2))


def spatial(channels: int, out: int) -> nn.Conv3d:
    """A 3×3 convolution of each frame."""
    return nn.Conv3d(channels, out, (1, 3, 3), padding=(0, 1, 1))


def folded(x_BCTHW: Tensor, time: int, side: int) -> Tensor:
    """Blocks of ``time`` frames and ``side`` × ``side`` places as channels."""
    return rearrange(x_BCTHW, "b c (t a) (h p) (w q) -> b (c a p q) t h w", a=time, p=side, q=side)


def unfolded(x_BCTHW: Tensor, time: int, side: int) -> Tensor:
    """The inverse of `folded`, but for the frames before the first, which a causal codec does not have."""
    x = rearrange(x_BCTHW, "b (c a p q) t h w -> b c (t a) (h p) (w q)", a=time, p=side, q=side)
    return x[:, :, time - 1 :]


def _channels_last(x_BCTHW: Tensor) -> Tensor:
    """Convolutions on a CPU are faster in this layout."""
    return x_BCTHW.contiguous(memory_format=torch.channels_last_3d)
