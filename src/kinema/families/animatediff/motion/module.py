"""The motion module (Guo et al. 2023, §4.2): temporal attention at every spatial position.

One follows every residual block (and its transformer) of the image U-Net. The output layer starts at zero, so a fresh
module changes nothing. Names are those of diffusers' ``MotionAdapter``.

Letters: N = B·T images, B clips, T frames, C channels, H W rows and columns, S spatial positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.diffusion.windows import AttentionWindow
from kinema.nn.ldm_unet import Attention, FeedForward, add_, group_norm, to_map, tokens
from kinema.nn.linear import Linear
from kinema.nn.meta import placed
from kinema.schema import BadRequest

EPS = 1e-6


def norm_over_clip(norm: nn.GroupNorm, x_NCHW: Tensor, frames: int) -> Tensor:
    """Apply a group norm with the statistics of a whole clip, without a copy in channels-last memory."""
    n, c, h, w = x_NCHW.shape
    clip = x_NCHW.permute(0, 2, 3, 1).reshape(n // frames, frames * h, w, c).permute(0, 3, 1, 2)
    return norm(clip).permute(0, 2, 3, 1).reshape(n, h, w, c).permute(0, 3, 1, 2)


@dataclass(frozen=True, eq=False)
class MotionControl:
    """How motion modules act in one forward pass; the defaults leave them as trained.

    Maps are per frame and position, [T or 1, 1, H or 1, W or 1], and are resized to every feature map. ``effect``
    scales a module's output; ``scale`` multiplies its attention keys, so that frames look further apart (above 1, more
    motion) or more alike. With ``windows``, attention runs in windows of frames whose results are averaged.
    """

    effect_T1HW: Tensor | None = None
    scale_T1HW: Tensor | None = None
    windows: tuple[AttentionWindow, ...] = ()

    def of(self, frames: Sequence[int]) -> MotionControl:
        """Select these frames."""

        def cut(x: Tensor | None) -> Tensor | None:
            return x if x is None or len(x) == 1 else x[list(frames)]

        return replace(self, effect_T1HW=cut(self.effect_T1HW), scale_T1HW=cut(self.scale_T1HW))


AS_TRAINED = MotionControl()


class MotionModule(nn.Module):
    """Group norm, linear layer, one temporal transformer block and linear layer, with a residual connection.

    ``over_clip`` normalises all frames together; ``double`` has two attention layers (SparseCtrl has one); ``stretch``
    is the number of frames that the positions are interpolated to.
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
        self.proj_in = Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([MotionBlock(channels, heads, positions, double, stretch)])
        self.proj_out = Linear(channels, channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x_NCHW: Tensor, frames: int, motion_control: MotionControl = AS_TRAINED) -> Tensor:
        """``x_NCHW`` holds the images of clips of ``frames`` frames each."""
        h_NCHW = norm_over_clip(self.norm, x_NCHW, frames) if self.over_clip else self.norm(x_NCHW)
        h_BTSC = self.proj_in(tokens(h_NCHW)).unflatten(0, (-1, frames))
        scale = motion_control.scale_T1HW
        scale_TS = None if scale is None else resized(scale, x_NCHW)[:, 0].flatten(1)
        for block in self.transformer_blocks:
            h_BTSC = block(h_BTSC, scale_TS, motion_control.windows)
        h_NCHW = to_map(self.proj_out(h_BTSC.flatten(0, 1)), x_NCHW.shape[2])
        if motion_control.effect_T1HW is not None:
            effect = resized(motion_control.effect_T1HW, x_NCHW).expand(frames, -1, -1, -1)
            h_NCHW = h_NCHW * effect.repeat(len(x_NCHW) // frames, 1, 1, 1)
        return add_(h_NCHW, x_NCHW)


def resized(x_T1HW: Tensor, like_NCHW: Tensor) -> Tensor:
    """Resize a map to a feature map's size by area averaging."""
    size = like_NCHW.shape[-2:]
    x_T1HW = x_T1HW.to(like_NCHW)
    if x_T1HW.shape[-2:] in (size, (1, 1)):
        return x_T1HW
    return F.interpolate(x_T1HW, size=size, mode="area")


class MotionBlock(nn.Module):
    """Two temporal attention layers, each on a layer norm plus the frame's position, then a feed-forward."""

    def __init__(self, width: int, heads: int, positions: int, double: bool, stretch: int | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width) if double else None
        self.attn2 = Attention(width, heads) if double else None
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)
        self.pos_embed = Positions(width, positions, stretch)

    def forward(
        self, x_BTSC: Tensor, scale_TS: Tensor | None = None, windows: Sequence[AttentionWindow] = ()
    ) -> Tensor:
        """``x`` may be overwritten if no gradient is needed; ``scale`` is [T or 1, S or 1]."""
        x = self._attend_in_windows(x_BTSC, scale_TS, windows) if windows else self._attend(x_BTSC, scale_TS)
        return self.ff(self.norm3(x), onto=x)

    def _attend(self, x_BTSC: Tensor, scale_TS: Tensor | None) -> Tensor:
        position_T1C = self.pos_embed(x_BTSC.shape[1])[:, None]
        x = add_(x_BTSC, self.attn1.over_time(self.norm1(x_BTSC) + position_T1C, scale_TS))
        if self.attn2 is not None and self.norm2 is not None:
            x = add_(x, self.attn2.over_time(self.norm2(x) + position_T1C, scale_TS))
        return x

    def _attend_in_windows(self, x_BTSC: Tensor, scale_TS: Tensor | None, windows: Sequence[AttentionWindow]) -> Tensor:
        """Attend within each window, with positions from 0, and return the weighted mean (FreeNoise)."""
        mean_BTSC = torch.zeros_like(x_BTSC)
        for window in windows:
            scale = scale_TS if scale_TS is None or len(scale_TS) == 1 else scale_TS[window.frames]
            attended_BTSC = self._attend(x_BTSC[:, window.frames], scale)
            mean_BTSC[:, window.frames] += window.weight_T.to(x_BTSC)[:, None, None] * attended_BTSC
        return mean_BTSC


class Positions(nn.Module):
    """Sinusoidal positions of frames 0 to ``count - 1``, in a buffer ``pe`` [1, count, C] that weight files contain."""

    pe: Tensor

    def __init__(self, width: int, count: int, stretch: int | None) -> None:
        super().__init__()
        self.stretch = stretch
        self.register_buffer("pe", sinusoids(count, width))

    def forward(self, frames: int) -> Tensor:
        """Positions [T, C]; with ``stretch``, interpolated so that frame ``stretch - 1`` has the last one."""
        table_1CL = self.pe.transpose(1, 2)
        longest = self.stretch or table_1CL.shape[2]
        if frames > longest:
            raise BadRequest(
                f"the motion module handles {longest} frames and got {frames}; give --window, or override stretch"
            )
        if self.stretch is not None and self.stretch != table_1CL.shape[2]:
            table_1CL = F.interpolate(table_1CL.float(), size=self.stretch, mode="linear", align_corners=True)
        return table_1CL[0, :, :frames].T.to(self.pe.dtype)


def sinusoids(count: int, width: int) -> Tensor:
    """Interleaved sine and cosine, [1, count, width] (Vaswani et al. 2017, §3.5; not the U-Net's order)."""

    def table() -> Tensor:
        rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
        angle = torch.arange(count)[:, None] * rate
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[None]

    return placed((1, count, 2 * ((width + 1) // 2)), table)
