"""The motion module (Guo et al. 2023, §4.2): attention of every place to itself in the other frames.

One follows every residual block (and its attention) of the image U-Net; the last layer starts at zero, so that a
fresh module changes nothing. Names are those of diffusers' ``MotionAdapter``.

Letters: N = B·T images, B clips, T frames, C channels, H W rows and columns, S places.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.nn.ldm_unet import Attention, FeedForward, add_, group_norm, places, tokens
from kinema.schema import BadRequest

EPS = 1e-6


def norm_over_clip(norm: nn.GroupNorm, x_NCHW: Tensor, frames: int) -> Tensor:
    """A group norm whose mean and variance are those of a whole clip; no copy in channels-last memory."""
    n, c, h, w = x_NCHW.shape
    clip = x_NCHW.permute(0, 2, 3, 1).reshape(n // frames, frames * h, w, c).permute(0, 3, 1, 2)
    return norm(clip).permute(0, 2, 3, 1).reshape(n, h, w, c).permute(0, 3, 1, 2)


class MotionModule(nn.Module):
    """Group norm, linear layer, one block over time, linear layer; added to its input.

    ``over_clip``: normalise all frames together. ``double``: two attention layers (SparseCtrl has one). ``stretch``:
    frames over which the positions are interpolated.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        positions: int,
        *,
        over_clip: bool = False,
        double: bool = True,
        stretch: int | None = None,
    ) -> None:
        super().__init__()
        self.over_clip = over_clip
        self.norm = group_norm(channels, EPS)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([MotionBlock(channels, heads, positions, double, stretch)])
        self.proj_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x_NCHW: Tensor, frames: int, effect_T1HW: Tensor | None = None) -> Tensor:
        """``effect``: how much of it is added, per frame and place ([T or 1, 1, H or 1, W or 1]); None is all."""
        if self.norm.weight.requires_grad and not x_NCHW.requires_grad and torch.is_grad_enabled():
            # Beside frozen layers: torch 2.13's group norm of channels-last maps crashes where it needs no gradient
            # of its input but one of its weights.
            x_NCHW = x_NCHW.detach().requires_grad_()
        h_NCHW = norm_over_clip(self.norm, x_NCHW, frames) if self.over_clip else self.norm(x_NCHW)
        h_BTSC = self.proj_in(tokens(h_NCHW)).unflatten(0, (-1, frames))
        for block in self.transformer_blocks:
            h_BTSC = block(h_BTSC)
        h_NCHW = places(self.proj_out(h_BTSC.flatten(0, 1)), x_NCHW.shape[2])
        if effect_T1HW is not None:
            h_NCHW = h_NCHW * _effect(effect_T1HW, x_NCHW, frames)
        return add_(h_NCHW, x_NCHW)


def _effect(effect_T1HW: Tensor, x_NCHW: Tensor, frames: int) -> Tensor:
    """The effect at the size of a map, one row per image."""
    effect = effect_T1HW.to(x_NCHW)
    if effect.shape[-1] > 1 or effect.shape[-2] > 1:
        effect = F.interpolate(effect, size=x_NCHW.shape[-2:], mode="bilinear", align_corners=False)
    return effect.expand(frames, -1, -1, -1).repeat(len(x_NCHW) // frames, 1, 1, 1)


class MotionBlock(nn.Module):
    """Attention over time twice, each on a layer norm plus the frame's position, then a feed-forward."""

    def __init__(self, width: int, heads: int, positions: int, double: bool, stretch: int | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width) if double else None
        self.attn2 = Attention(width, heads) if double else None
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)
        self.pos_embed = Positions(width, positions, stretch)

    def forward(self, x_BTSC: Tensor) -> Tensor:
        """x may be overwritten where no gradient is needed."""
        position_T1C = self.pos_embed(x_BTSC.shape[1])[:, None]
        x = add_(x_BTSC, self.attn1.over_time(self.norm1(x_BTSC) + position_T1C))
        if self.attn2 is not None and self.norm2 is not None:
            x = add_(x, self.attn2.over_time(self.norm2(x) + position_T1C))
        return add_(x, self.ff(self.norm3(x)))


class Positions(nn.Module):
    """The sinusoids of frames 0 to ``count - 1`` as a buffer ``pe`` [1, count, C], which files carry."""

    pe: Tensor

    def __init__(self, width: int, count: int, stretch: int | None) -> None:
        super().__init__()
        self.stretch = stretch
        self.register_buffer("pe", sinusoids(count, width))

    def forward(self, frames: int) -> Tensor:
        """[T, C]; stretched, the last of ``stretch`` frames has the last position, and others lie between."""
        table_1CL = self.pe.transpose(1, 2)
        longest = self.stretch or table_1CL.shape[2]
        if frames > longest:
            raise BadRequest(
                f"this motion module places {longest} frames and was given {frames}; give a window, or stretch it"
            )
        if self.stretch is not None and self.stretch != table_1CL.shape[2]:
            table_1CL = F.interpolate(table_1CL.float(), size=self.stretch, mode="linear", align_corners=True)
        return table_1CL[0, :, :frames].T.to(self.pe.dtype)


def sinusoids(count: int, width: int) -> Tensor:
    """[1, count, width]: sine and cosine by turns (Vaswani et al. 2017, §3.5; not the U-Net's order)."""
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angle = torch.arange(count)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[None]
