"""The motion module (Guo et al. 2023, §4.2): attention of every place to itself in the other frames.

One follows every residual block (and its attention) of the image U-Net; the last layer starts at zero, so that a
fresh module changes nothing. Names are those of diffusers' ``MotionAdapter``.

Letters: N = B·T images, B clips, T frames, C channels, H W rows and columns, S places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.diffusion.windows import View
from kinema.nn.ldm_unet import Attention, FeedForward, add_, group_norm, places, tokens
from kinema.nn.meta import placed
from kinema.schema import BadRequest

EPS = 1e-6


def norm_over_clip(norm: nn.GroupNorm, x_NCHW: Tensor, frames: int) -> Tensor:
    """A group norm whose mean and variance are those of a whole clip; no copy in channels-last memory."""
    n, c, h, w = x_NCHW.shape
    clip = x_NCHW.permute(0, 2, 3, 1).reshape(n // frames, frames * h, w, c).permute(0, 3, 1, 2)
    return norm(clip).permute(0, 2, 3, 1).reshape(n, h, w, c).permute(0, 3, 1, 2)


@dataclass(frozen=True, eq=False)
class Moving:
    """How motion modules act in one forward pass; as it is made here, as they were trained.

    Per frame and place, [T or 1, 1, H or 1, W or 1], brought to the size of every map: ``effect`` is how much of a
    module is added; ``scale`` multiplies the keys of its attention, so that frames look further apart (above 1, more
    motion) or alike. With ``views`` attention works in windows of frames and their results are averaged.
    """

    effect_T1HW: Tensor | None = None
    scale_T1HW: Tensor | None = None
    views: tuple[View, ...] = ()

    def of(self, frames: Sequence[int]) -> Moving:
        """The part of it that belongs to these frames."""

        def cut(x: Tensor | None) -> Tensor | None:
            return x if x is None or len(x) == 1 else x[list(frames)]

        return replace(self, effect_T1HW=cut(self.effect_T1HW), scale_T1HW=cut(self.scale_T1HW))


AS_TRAINED = Moving()


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

    def forward(self, x_NCHW: Tensor, frames: int, moving: Moving = AS_TRAINED) -> Tensor:
        """``x_NCHW`` are the images of clips of so many ``frames``."""
        h_NCHW = norm_over_clip(self.norm, x_NCHW, frames) if self.over_clip else self.norm(x_NCHW)
        h_BTSC = self.proj_in(tokens(h_NCHW)).unflatten(0, (-1, frames))
        scale_TS = None if moving.scale_T1HW is None else resized(moving.scale_T1HW, x_NCHW)[:, 0].flatten(1)
        for block in self.transformer_blocks:
            h_BTSC = block(h_BTSC, scale_TS, moving.views)
        h_NCHW = places(self.proj_out(h_BTSC.flatten(0, 1)), x_NCHW.shape[2])
        if moving.effect_T1HW is not None:
            effect = resized(moving.effect_T1HW, x_NCHW).expand(frames, -1, -1, -1)
            h_NCHW = h_NCHW * effect.repeat(len(x_NCHW) // frames, 1, 1, 1)
        return add_(h_NCHW, x_NCHW)


def beside_frozen(module: MotionModule, x_NCHW: Tensor) -> Tensor:
    """The map as a module in training takes it after frozen layers, with a gradient that nobody reads.

    torch 2.13's group norm of channels-last maps crashes where it needs no gradient of its input but one of its
    weights. Not in the module's own ``forward``, which would not compile as a whole.
    """
    if module.norm.weight.requires_grad and not x_NCHW.requires_grad and torch.is_grad_enabled():
        return x_NCHW.detach().requires_grad_()
    return x_NCHW


def resized(x_T1HW: Tensor, like_NCHW: Tensor) -> Tensor:
    """What is told per place at the size of a map: each cell has the mean of what it covers."""
    size = like_NCHW.shape[-2:]
    x_T1HW = x_T1HW.to(like_NCHW)
    if x_T1HW.shape[-2:] in (size, (1, 1)):
        return x_T1HW
    return F.interpolate(x_T1HW, size=size, mode="area")


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

    def forward(self, x_BTSC: Tensor, scale_TS: Tensor | None = None, views: Sequence[View] = ()) -> Tensor:
        """x may be overwritten where no gradient is needed; scale is [T or 1, S or 1]."""
        x = self._in_views(x_BTSC, scale_TS, views) if views else self._attend(x_BTSC, scale_TS)
        return self.ff(self.norm3(x), onto=x)

    def _attend(self, x_BTSC: Tensor, scale_TS: Tensor | None) -> Tensor:
        position_T1C = self.pos_embed(x_BTSC.shape[1])[:, None]
        x = add_(x_BTSC, self.attn1.over_time(self.norm1(x_BTSC) + position_T1C, scale_TS))
        if self.attn2 is not None and self.norm2 is not None:
            x = add_(x, self.attn2.over_time(self.norm2(x) + position_T1C, scale_TS))
        return x

    def _in_views(self, x_BTSC: Tensor, scale_TS: Tensor | None, views: Sequence[View]) -> Tensor:
        """Every window by itself, its frames placed from 0, and the weighted mean of all (FreeNoise)."""
        made_BTSC = torch.zeros_like(x_BTSC)
        for view in views:
            scale = scale_TS if scale_TS is None or len(scale_TS) == 1 else scale_TS[view.frames]
            seen_BTSC = self._attend(x_BTSC[:, view.frames], scale)
            made_BTSC[:, view.frames] += view.weight_T.to(x_BTSC)[:, None, None] * seen_BTSC
        return made_BTSC


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

    def table() -> Tensor:
        rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
        angle = torch.arange(count)[:, None] * rate
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[None]

    return placed((1, count, 2 * ((width + 1) // 2)), table)
