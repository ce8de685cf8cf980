"""Open-Sora 2.0's Video DC-AE: 4×32×32 pixels to 128 channels (Peng et al. 2025, section 3; Chen et al. 2024).

A deep-compression autoencoder: convolutions at high resolution, linear attention at low resolution, and every change of
resolution added to a shortcut without weights, which moves pixels between space and channels. It is not causal: 4k
frames become k latent frames, and a lone image one. Parameter names are those of the published file.

Letters: B batch, C channels, T H W frames, rows and columns, N heads, D width of a head, L places of the whole clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.cancel import checkpoint

RMS_EPS = 1e-5
ATTENTION_EPS = 1e-15
EXPANSION = 4
"""Width of a gated feed-forward block over that of its input."""


@dataclass(frozen=True)
class DCAEConfig:
    """Sizes; the defaults are those of F32T4C128 (459,462,147 in 339 tensors)."""

    latent: int = 128
    widths: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)
    encoder_depths: tuple[int, ...] = (2, 2, 2, 3, 3, 3)
    decoder_depths: tuple[int, ...] = (3, 3, 3, 3, 3, 3)
    attention_from: int = 3
    """The first resolution whose blocks have attention."""
    temporal: tuple[int, ...] = (3, 4)
    """The resolutions after which (before which, in the decoder) the number of frames changes too."""
    head: int = 32
    scale: int = 5
    """Sides of the depthwise convolution that gives attention its second scale."""

    @property
    def stride(self) -> tuple[int, int, int]:
        """Pixels of one latent cell along (time, height, width)."""
        side = 2 ** (len(self.widths) - 1)
        return (2 ** len(self.temporal), side, side)


class RMSNorm(nn.Module):
    """Root-mean-square norm over channels, with weight and bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        rate = torch.rsqrt(x_BCTHW.float().square().mean(1, keepdim=True) + RMS_EPS)
        weight, bias = (each[:, None, None, None] for each in (self.weight, self.bias))
        return torch.addcmul(bias, (x_BCTHW * rate).to(x_BCTHW.dtype), weight)


class Conv(nn.Module):
    """A zero-padded convolution, then norm and activation where there are any."""

    def __init__(  # noqa: PLR0917
        self,
        channels: int,
        out: int,
        kernel: int = 3,
        stride: tuple[int, int, int] = (1, 1, 1),
        groups: int = 1,
        *,
        bias: bool = True,
        norm: bool = False,
        silu: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=bias)
        self.norm = RMSNorm(out) if norm else None
        self.silu = silu

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        x = self.conv(x_BCTHW)
        x = x if self.norm is None else self.norm(x)
        return F.silu(x, inplace=not torch.is_grad_enabled()) if self.silu else x


class ResBlock(nn.Module):
    """Two convolutions, the second one normed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = Conv(width, width, silu=True)
        self.conv2 = Conv(width, width, bias=False, norm=True)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.conv2(self.conv1(x_BCTHW))


class LinearAttention(nn.Module):
    """Attention of all places with ReLU in place of softmax, at two scales (EfficientViT; Cai et al. 2023)."""

    def __init__(self, width: int, head: int, scale: int) -> None:
        super().__init__()
        heads, self.head = width // head, head
        inner = 3 * heads * head
        self.qkv = Conv(width, inner, 1, bias=False)
        depthwise = nn.Conv3d(inner, inner, scale, padding=scale // 2, groups=inner, bias=False)
        mixing = nn.Conv3d(inner, inner, 1, groups=3 * heads, bias=False)
        self.aggreg = nn.ModuleList([nn.Sequential(depthwise, mixing)])
        self.proj = Conv(2 * heads * head, width, 1, bias=False, norm=True)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        qkv = self.qkv(x_BCTHW)
        qkv = torch.cat([qkv, *(layer(qkv) for layer in self.aggreg)], dim=1)
        q_BNDL, k_BNDL, v_BNDL = rearrange(qkv, "b (n s d) t h w -> s b n d (t h w)", s=3, d=self.head)
        q_BNDL, k_BNDL = F.relu(q_BNDL), F.relu(k_BNDL)
        v_BNDL = F.pad(v_BNDL, (0, 0, 0, 1), value=1.0)  # a row of ones, which sums up the weights
        out = (v_BNDL @ k_BNDL.transpose(-1, -2) @ q_BNDL).float()
        out_BNDL = (out[:, :, :-1] / (out[:, :, -1:] + ATTENTION_EPS)).to(qkv.dtype)
        _, _, frames, rows, columns = x_BCTHW.shape
        return self.proj(rearrange(out_BNDL, "b n d (t h w) -> b (n d) t h w", t=frames, h=rows, w=columns))


class GatedFeedForward(nn.Module):
    """Widening, depthwise convolution, gate, narrowing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = EXPANSION * width
        self.inverted_conv = Conv(width, 2 * inner, 1, silu=True)
        self.depth_conv = Conv(2 * inner, 2 * inner, groups=2 * inner)
        self.point_conv = Conv(inner, width, 1, bias=False, norm=True)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        x, gate = self.depth_conv(self.inverted_conv(x_BCTHW)).chunk(2, dim=1)
        return self.point_conv(x * F.silu(gate))


class Residual(nn.Module):
    """Added to its input."""

    def __init__(self, main: nn.Module) -> None:
        super().__init__()
        self.main = main

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.main(x_BCTHW) + x_BCTHW


class AttentionBlock(nn.Module):
    """Linear attention and a gated feed-forward block."""

    def __init__(self, config: DCAEConfig, width: int) -> None:
        super().__init__()
        self.context_module = Residual(LinearAttention(width, config.head, config.scale))
        self.local_module = Residual(GatedFeedForward(width))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.local_module(self.context_module(x_BCTHW))


class Narrow(nn.Module):
    """Added to what it is given, with pixels moved into channels and groups of channels averaged."""

    def __init__(self, main: nn.Module, out: int, *, space: bool = True, time: bool = False) -> None:
        super().__init__()
        self.main, self.out = main, out
        self.space, self.time = 2 if space else 1, 2 if time else 1

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        time = self.time if x_BCTHW.shape[2] > 1 else 1
        factors = {"r": time, "p": self.space, "q": self.space}
        moved = rearrange(x_BCTHW, "b c (t r) (h p) (w q) -> b (c r p q) t h w", **factors)
        return self.main(x_BCTHW) + reduce(moved, "b (c g) t h w -> b c t h w", "mean", c=self.out)


class Widen(nn.Module):
    """Added to what it is given, with channels repeated and moved into pixels."""

    def __init__(self, main: nn.Module, out: int, *, space: bool = True, time: bool = False) -> None:
        super().__init__()
        self.main, self.out = main, out
        self.space, self.time = 2 if space else 1, 2 if time else 1

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        time = self.time if x_BCTHW.shape[2] > 1 else 1
        count = self.out * time * self.space**2 // x_BCTHW.shape[1]
        factors = {"r": time, "p": self.space, "q": self.space}
        wide = repeat(x_BCTHW, "b c t h w -> b (c g) t h w", g=count)
        return self.main(x_BCTHW) + rearrange(wide, "b (c r p q) t h w -> b c (t r) (h p) (w q)", **factors)


class UpsampleConv(nn.Module):
    """Nearest neighbours, then a convolution; a single frame stays one."""

    def __init__(self, channels: int, out: int, *, time: bool) -> None:
        super().__init__()
        self.time = 2 if time else 1
        self.conv = Conv(channels, out)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        time = self.time if x_BCTHW.shape[2] > 1 else 1
        return self.conv(repeat(x_BCTHW, "b c t h w -> b c (t r) (h p) (w q)", r=time, p=2, q=2))


class Steps(nn.Module):
    """Layers one after the other."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.op_list = nn.ModuleList(layers)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        for layer in self.op_list:
            checkpoint()
            x_BCTHW = layer(x_BCTHW)
        return x_BCTHW


def _blocks(config: DCAEConfig, level: int, depth: int) -> list[nn.Module]:
    width = config.widths[level]
    if level >= config.attention_from:
        return [AttentionBlock(config, width) for _ in range(depth)]
    return [Residual(ResBlock(width)) for _ in range(depth)]


class Encoder(nn.Module):
    """``forward(pixels B×3×T×H×W) -> latents B×c×t×h×w``."""

    def __init__(self, config: DCAEConfig) -> None:
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.project_in = Conv(3, widths[0])
        self.stages = nn.ModuleList()
        for level, depth in enumerate(config.encoder_depths):
            layers = _blocks(config, level, depth)
            if level < last:
                time, out = level in config.temporal, widths[level + 1]
                conv = Conv(widths[level], out, stride=(2 if time else 1, 2, 2))
                layers.append(Narrow(conv, out, time=time))
            self.stages.append(Steps(layers))
        self.project_out = Narrow(Steps([Conv(widths[-1], config.latent)]), config.latent, space=False)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        x = self.project_in(x_BCTHW)
        for stage in self.stages:
            x = stage(x)
        return self.project_out(x)


class Decoder(nn.Module):
    """``forward(latents B×c×t×h×w) -> pixels B×3×T×H×W``."""

    def __init__(self, config: DCAEConfig) -> None:
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.project_in = Widen(Conv(config.latent, widths[-1]), widths[-1], space=False)
        self.stages = nn.ModuleList()
        for level, depth in enumerate(config.decoder_depths):
            layers = _blocks(config, level, depth)
            if level < last:
                time, width = level in config.temporal, widths[level]
                layers.insert(0, Widen(UpsampleConv(widths[level + 1], width, time=time), width, time=time))
            self.stages.append(Steps(layers))
        self.project_out = Steps([RMSNorm(widths[0]), nn.ReLU(), Conv(widths[0], 3)])

    def forward(self, z_BCTHW: Tensor) -> Tensor:
        x = self.project_in(z_BCTHW)
        for stage in reversed(list(self.stages)):
            x = stage(x)
        return self.project_out(x)


class VideoDCAE(nn.Module):
    """Encoder and decoder."""

    def __init__(self, config: DCAEConfig = DCAEConfig()) -> None:  # noqa: B008 (frozen)
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.stride = config.stride

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        """Latents, not scaled. A clip of several frames has a multiple of 4 of them."""
        return self.encoder(video_BCTHW)

    def decode(self, z_BCTHW: Tensor) -> Tensor:
        """Pixels of latents that are not scaled."""
        return self.decoder(z_BCTHW)
