"""Temporal layers for a pretrained image network: temporal resampling, and residual blocks that start at zero.

After Lumiere (Bar-Tal et al. 2024, §3.1).

Freshly initialised they leave every map as it is, apart from the frames that resampling drops and repeats.

Letters: B clips, T frames, N = B·T images, C channels, H W rows and columns, S = H·W positions, K features of a head.
Maps are N×C×H×W in channels-last memory.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from kinema.nn.attention import attend
from kinema.nn.ldm_unet import FeedForward, group_norm, silu_, to_map, tokens
from kinema.nn.linear import Linear, linear
from kinema.nn.rope import angles, rotate

EPS = 1e-5


class TemporalConv(nn.Module):
    """A convolution over three frames that starts as the identity; frames beyond the clip are zero.

    Computed as products, since an identity of products is exact: a value times one, plus zeros.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, channels, channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        with torch.no_grad():
            self.weight[1].fill_diagonal_(1)

    def forward(self, x_NCHW: Tensor, frames: int, stride: int = 1) -> Tensor:
        """Every ``stride``-th frame, from the first, of the convolved clip of ``frames`` frames."""
        before, here, after = self.weight.unbind()
        x_BTSC = tokens(x_NCHW).unflatten(0, (-1, frames))
        out = linear(x_BTSC[:, ::stride], here, self.bias)
        left = linear(x_BTSC[:, stride - 1 :: stride][:, : out.shape[1] - 1], before)
        right = linear(x_BTSC[:, 1::stride], after)
        out[:, 1:] += left
        out[:, : right.shape[1]] += right
        return to_map(out.flatten(0, 1), x_NCHW.shape[2])


class TemporalDownsample(nn.Module):
    """Halves the frames (rounding up): a temporal convolution of stride two, at first every second frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = TemporalConv(channels)

    def forward(self, x_NCHW: Tensor, frames: int) -> Tensor:
        return self.conv(x_NCHW, frames, stride=2)


class TemporalUpsample(nn.Module):
    """Doubles the frames to ``out`` of them: each twice, then a temporal convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = TemporalConv(channels)

    def forward(self, x_NCHW: Tensor, frames: int, out: int) -> Tensor:
        x_BTCHW = x_NCHW.unflatten(0, (-1, frames)).repeat_interleave(2, dim=1)[:, :out]
        twice = x_BTCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return self.conv(twice, out)


class SpaceTimeConv(nn.Module):
    """A 3×3 convolution, then one over frames, added through a linear layer that starts at zero."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, EPS)
        self.space = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm_time = group_norm(channels, EPS)
        self.time = TemporalConv(channels)
        self.proj = _zero(Linear(channels, channels))
        self.norm.num_groups = self.norm_time.num_groups = groups

    def forward(self, x_NCHW: Tensor, frames: int) -> Tensor:
        h = self.space(silu_(self.norm(x_NCHW)))
        h = self.time(silu_(self.norm_time(h)), frames)
        return x_NCHW + to_map(self.proj(silu_(tokens(h))), x_NCHW.shape[2])


class TemporalAttention(nn.Module):
    """``depth`` layers of attention over the frames of each position, with rotary positions, and feed-forward layers.

    The last linear layer of both starts at zero.
    """

    def __init__(self, channels: int, heads: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_TemporalLayer(channels, heads) for _ in range(depth))

    def forward(self, x_NCHW: Tensor, frames: int) -> Tensor:
        x_NSC = tokens(x_NCHW)
        for layer in self.layers:
            x_NSC = layer(x_NSC, frames)
        return to_map(x_NSC, x_NCHW.shape[2])


class _TemporalLayer(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, channels // heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = Linear(channels, 3 * channels, bias=False)
        self.out = _zero(Linear(channels, channels))
        self.norm_ff = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)
        _zero(self.ff.net[2])

    def forward(self, x_NSC: Tensor, frames: int) -> Tensor:
        split = "(b t) s (three h k) -> three b s h t k"
        q, k, v = rearrange(self.qkv(self.norm(x_NSC)), split, t=frames, three=3, h=self.heads)
        pairs = self.width // 2 * 2
        turns = angles(torch.arange(frames, device=x_NSC.device, dtype=torch.float32)[:, None], (pairs,))
        cos_TP, sin_TP = turns.cos().to(q.dtype), turns.sin().to(q.dtype)
        q, k = (torch.cat([rotate(x[..., :pairs], cos_TP, sin_TP), x[..., pairs:]], dim=-1) for x in (q, k))
        mixed = rearrange(attend(q, k, v), "b s h t k -> (b t) s (h k)")
        x_NSC = x_NSC + self.out(mixed)
        return self.ff(self.norm_ff(x_NSC), onto=x_NSC)


def _zero(layer: nn.Module) -> Linear:
    assert isinstance(layer, Linear)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
