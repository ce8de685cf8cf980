"""Layers of the codec of Open-Sora 1.3 (`vae13`), under the published names.

Letters: B batch, C channels, T frames, H W rows and columns, L places of a clip; N images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.cancel import checkpoint
from kinema.families.opensora.vae1x.zero_causal import GROUPS, CausalConv3d, after_silu, residual
from kinema.vae.by_frames import Frames, activated, by_frames, scale_and_shift
from kinema.vae.tiling import by_images

EPS, UPSAMPLING_EPS = 1e-6, 1e-5


class ResBlock(nn.Module):
    """Two convolutions, added to the input."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels, EPS)
        self.conv1 = CausalConv3d(channels, out)
        self.norm2 = nn.GroupNorm(GROUPS, out, EPS)
        self.conv2 = CausalConv3d(out, out)
        self.nin_shortcut = CausalConv3d(channels, out, 1) if channels != out else None

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return residual(x_BCTHW, (self.norm1, self.conv1), (self.norm2, self.conv2), self.nin_shortcut)


class CausalAttention(nn.Module):
    """Single-head attention of every place to itself and all places before it, frame by frame and row by row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width, EPS)
        self.q, self.k, self.v, self.proj_out = (CausalConv3d(width, width, 1) for _ in range(4))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        h_BCTHW = self.norm(x_BCTHW)
        q, k, v = (layer(h_BCTHW).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        out_BLC = F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0]
        return x_BCTHW + self.proj_out(out_BLC.transpose(1, 2).reshape(x_BCTHW.shape))


class MiddleBlock(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(width, width)
        self.attn_1 = CausalAttention(width)
        self.block_2 = ResBlock(width, width)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_BCTHW)))


class ImageResampling(nn.Module):
    """Halves or doubles the sides of each frame: a convolution of stride 2, or one of nearest neighbours."""

    def __init__(self, width: int, *, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(width, width, 3, 2 if down else 1, 0 if down else 1)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        images_NCHW = x_BCTHW.transpose(1, 2).flatten(0, 1)
        out_NCHW = by_images(self._image, images_NCHW, 1 if self.down else 4)
        return out_NCHW.unflatten(0, (len(x_BCTHW), -1)).transpose(1, 2)

    def _image(self, x_NCHW: Tensor) -> Tensor:
        """Padded at the right and at the bottom alone before it is halved."""
        return self.conv(F.pad(x_NCHW, (0, 1, 0, 1)) if self.down else F.interpolate(x_NCHW, scale_factor=2.0))


class Downsample(nn.Module):
    """Halves the number of frames and their sides."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(width, width, stride=(2, 2, 2))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.conv(x_BCTHW)


class UpsamplingBlock(nn.Module):
    """``x + SiLU(x + norm conv SiLU norm conv x)``, where x is what is given with frames and sides doubled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(width, width)
        self.norm1 = nn.GroupNorm(GROUPS, width, UPSAMPLING_EPS)
        self.conv2 = CausalConv3d(width, width)
        self.norm2 = nn.GroupNorm(GROUPS, width, UPSAMPLING_EPS)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            x = F.interpolate(x_BCTHW, scale_factor=2.0)
            return x + F.silu(x + self.norm2(after_silu(self.conv2, self.norm1, self.conv1(x))))
        h = by_frames(self.conv1, doubled(x_BCTHW))
        h = by_frames(self.conv2, activated(self.norm1, h))
        scale, shift = scale_and_shift(self.norm2, h)
        for t in range(h.shape[2]):
            checkpoint()
            x = F.interpolate(x_BCTHW[:, :, t // 2], scale_factor=2.0)
            h[:, :, t] = F.silu(torch.addcmul(shift[:, :, 0], h[:, :, t].float(), scale[:, :, 0]).to(x) + x) + x
        return h


def doubled(x_BCTHW: Tensor) -> Frames:
    """Nearest neighbours: every frame, row and column twice."""
    frames, height, width = x_BCTHW.shape[2:]

    def write(start: int, into: Tensor) -> None:
        wide = into.unflatten(-1, (width, 2)).unflatten(-3, (height, 2))
        for at in range(into.shape[2]):
            wide[:, :, at] = x_BCTHW[:, :, (start + at) // 2, :, None, :, None]

    return Frames(x_BCTHW, 2 * frames, 2 * height, 2 * width, write)


class Upsample(nn.Module):
    """Doubles the number of frames and their sides; one name deeper, as published."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv3d = UpsamplingBlock(width)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.conv3d(x_BCTHW)


class Level(nn.Module):
    """Blocks at one resolution, then its change, if any."""

    def __init__(
        self, channels: int, out: int, layers: int, *, down: nn.Module | None = None, up: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResBlock(channels if i == 0 else out, out) for i in range(layers))
        self.downsample, self.upsample = down, up

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        for layer in (*self.block, self.downsample, self.upsample):
            x_BCTHW = x_BCTHW if layer is None else layer(x_BCTHW)
        return x_BCTHW
