"""The causal video codec of HunyuanVideo (Kong et al. 2024) and Open-Sora 2.0, under diffusers' parameter names.

A frame is coded from itself and from what comes before it, so that 4k + 1 frames become k + 1 latent frames and a lone
image one. Group norms span all frames that are coded together, so the first latent frame of a clip differs from that of
its first frame alone. Without gradients, layers run over a few frames at a time (`kinema.vae.by_frames`), to the same
numbers but for rounding.

Letters: B batch, C channels, T frames, H W pixel rows and columns, c t h w those of latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.cancel import checkpoint
from kinema.nn.linear import Linear
from kinema.vae.by_frames import activated, by_frames, mixed, repeated, unchanged
from kinema.vae.kl2d import ResolutionBlocks

EPS = 1e-6
GROUPS = 32

Stride = tuple[int, int, int]
"""(time, height, width)."""


class CausalConv3d(nn.Module):
    """A convolution that is padded with its border, in time only before the first frame."""

    zeros = False

    def __init__(self, channels: int, out: int, kernel: int = 3, stride: Stride = (1, 1, 1)) -> None:
        super().__init__()
        side = kernel // 2
        self.pad: tuple[int, ...] = (side, side, side, side, kernel - 1, 0)
        self.conv = nn.Conv3d(channels, out, kernel, stride)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self.conv(F.pad(x_BCTHW, self.pad, mode="replicate") if any(self.pad) else x_BCTHW)
        return by_frames(self, unchanged(x_BCTHW))


class ResBlock(nn.Module):
    """Norm, SiLU and convolution, twice, added to the input, which the result overwrites if no gradient is needed."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels, EPS)
        self.conv1 = CausalConv3d(channels, out)
        self.norm2 = nn.GroupNorm(GROUPS, out, EPS)
        self.conv2 = CausalConv3d(out, out)
        self.conv_shortcut = CausalConv3d(channels, out, 1) if channels != out else None

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            h = self.conv1(F.silu(self.norm1(x_BCTHW), inplace=True))
            h = self.conv2(F.silu(self.norm2(h), inplace=True))
            return h + (x_BCTHW if self.conv_shortcut is None else self.conv_shortcut(x_BCTHW))
        h = by_frames(self.conv1, activated(self.norm1, x_BCTHW))
        skip = x_BCTHW if self.conv_shortcut is None else mixed(self.conv_shortcut.conv, x_BCTHW)
        return by_frames(self.conv2, activated(self.norm2, h), onto=skip)


class FrameCausalAttention(nn.Module):
    """Single-head attention of every place to all places of its own frame and of earlier ones; added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(GROUPS, width, EPS)
        self.to_q, self.to_k, self.to_v = (Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([Linear(width, width)])

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        frames, places = x_BCTHW.shape[2], x_BCTHW.shape[3] * x_BCTHW.shape[4]
        x_BLC = self.group_norm(x_BCTHW).flatten(2).transpose(1, 2)
        q, k, v = (layer(x_BLC)[:, None] for layer in (self.to_q, self.to_k, self.to_v))
        del x_BLC
        # One frame of queries at a time: a mask over all pairs would take L² values.
        parts = []
        for t in range(frames):
            checkpoint()
            end = (t + 1) * places
            parts.append(F.scaled_dot_product_attention(q[:, :, t * places : end], k[:, :, :end], v[:, :, :end]))
        out_BLC = torch.cat(parts, dim=2)[:, 0]
        return x_BCTHW + self.to_out[0](out_BLC).transpose(1, 2).reshape(x_BCTHW.shape)


class MiddleBlock(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(width, width) for _ in range(2))
        self.attentions = nn.ModuleList([FrameCausalAttention(width)])

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x_BCTHW)))


class Downsample(nn.Module):
    """A strided convolution."""

    def __init__(self, width: int, stride: Stride) -> None:
        super().__init__()
        self.conv = CausalConv3d(width, width, stride=stride)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.conv(x_BCTHW)


class Upsample(nn.Module):
    """Nearest neighbours, then a convolution. The first frame stays one frame."""

    def __init__(self, width: int, stride: Stride) -> None:
        super().__init__()
        self.stride = stride
        self.conv = CausalConv3d(width, width)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return by_frames(self.conv, repeated(x_BCTHW, self.stride))
        time, rows, columns = self.stride
        if time > 1:
            first, rest = x_BCTHW[:, :, :1], x_BCTHW[:, :, 1:]
            x_BCTHW = torch.cat([first, rest.repeat_interleave(time, dim=2)], dim=2)
        b, c, t, h, w = x_BCTHW.shape
        wide = x_BCTHW[:, :, :, :, None, :, None].expand(b, c, t, h, rows, w, columns)
        return self.conv(wide.reshape(b, c, t, h * rows, w * columns))


def _head(norm: nn.GroupNorm, conv: CausalConv3d, x_BCTHW: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return conv(F.silu(norm(x_BCTHW), inplace=True))
    return by_frames(conv, activated(norm, x_BCTHW))


def strides(levels: int, time: int) -> list[Stride | None]:
    """The change after each resolution but the last: sides halve, and time halves in the last ``time`` changes."""
    changes = levels - 1
    return [(2 if i >= changes - time else 1, 2, 2) if i < changes else None for i in range(levels)]


class Encoder(nn.Module):
    """``forward(pixels B×3×T×H×W) -> mean and log-variance, B×2c×t×h×w`` before ``quant_conv``."""

    def __init__(self, channels: Sequence[int], layers: int, latent: int, time: int) -> None:
        super().__init__()
        self.conv_in = CausalConv3d(3, channels[0])
        self.down_blocks = nn.ModuleList(
            ResolutionBlocks(
                [ResBlock(channels[max(i - 1, 0)] if j == 0 else out, out) for j in range(layers)],
                down=Downsample(out, stride) if stride else None,
            )
            for i, (out, stride) in enumerate(zip(channels, strides(len(channels), time), strict=True))
        )
        self.mid_block = MiddleBlock(channels[-1])
        self.conv_norm_out = nn.GroupNorm(GROUPS, channels[-1], EPS)
        self.conv_out = CausalConv3d(channels[-1], 2 * latent)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        x = self.conv_in(x_BCTHW)
        for block in self.down_blocks:
            x = block(x)
        return _head(self.conv_norm_out, self.conv_out, self.mid_block(x))


class Decoder(nn.Module):
    """``forward(latents B×c×t×h×w) -> pixels B×3×T×H×W``."""

    def __init__(self, channels: Sequence[int], layers: int, latent: int, time: int) -> None:
        super().__init__()
        wide = list(reversed(channels))
        self.conv_in = CausalConv3d(latent, wide[0])
        self.mid_block = MiddleBlock(wide[0])
        self.up_blocks = nn.ModuleList(
            ResolutionBlocks(
                [ResBlock(wide[max(i - 1, 0)] if j == 0 else out, out) for j in range(layers + 1)],
                up=Upsample(out, stride) if stride else None,
            )
            for i, (out, stride) in enumerate(zip(wide, strides(len(wide), time), strict=True))
        )
        self.conv_norm_out = nn.GroupNorm(GROUPS, wide[-1], EPS)
        self.conv_out = CausalConv3d(wide[-1], 3)

    def forward(self, z_BCTHW: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z_BCTHW))
        for block in self.up_blocks:
            x = block(x)
        return _head(self.conv_norm_out, self.conv_out, x)


class CausalAutoencoder(nn.Module):
    """``AutoencoderKLHunyuanVideo`` of diffusers; the defaults are the published sizes (246,478,803 in 248 tensors)."""

    def __init__(
        self, channels: Sequence[int] = (128, 256, 512, 512), layers: int = 2, latent: int = 16, time: int = 2
    ) -> None:
        super().__init__()
        self.encoder = Encoder(channels, layers, latent, time)
        self.decoder = Decoder(channels, layers, latent, time)
        self.quant_conv = nn.Conv3d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = nn.Conv3d(latent, latent, 1)
        self.stride: Stride = (2**time, 2 ** (len(channels) - 1), 2 ** (len(channels) - 1))

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        """The mode of the latents, B×c×t×h×w, not scaled."""
        return self.quant_conv(self.encoder(video_BCTHW)).chunk(2, dim=1)[0]

    def decode(self, z_BCTHW: Tensor) -> Tensor:
        """Pixels of latents that are not scaled."""
        return self.decoder(self.post_quant_conv(z_BCTHW))
