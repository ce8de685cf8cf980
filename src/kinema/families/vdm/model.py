"""The video U-Net of VDM: a 2D U-Net whose frames interact only in temporal attention (Ho et al. 2022, §3).

Letters: B batch, T frames (a clip's, then K independent images), N = B·T frames folded together,
C channels, H W feature rows and columns, S = H·W positions, h heads, d head width, L words, D text width,
E width of the conditioning vector.

Frames are folded into the batch once. Inside, everything is N×C×H×W in channels-last memory, where the tokens
B×T×S×C of both attentions are a view.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.conditioning.pocket import PocketText, PocketTokenizer
from kinema.families.vdm.config import Config
from kinema.nn.embeddings import LogSNREmbedding
from kinema.nn.linear import Linear

_FOLD = "b c t (h p) (w q) -> (b t) (c p q) h w"
_UNFOLD = "(b t) (c p q) h w -> b c t (h p) (w q)"
_Layer = TypeVar("_Layer", nn.Conv2d, Linear)
_BRANCH_GAIN = 1e-2
"""Initial gain of every residual branch's last layer: blocks start near the identity, and every parameter, including
the null condition, has a gradient at the first step."""


class VideoUNet(nn.Module):
    """``forward(z, log_snr, cond, independent) -> output`` B×3×T×H×W: eps or v, by the parameterisation.

    ``cond`` comes from `encode`; None means the trained null condition.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width, pixels = 4 * config.channels, 3 * config.patch**2
        self.noise = LogSNREmbedding(width, config.channels)
        if config.conditional:
            # The paper's null is c = 0. This one is learned from that start, so that the network can distinguish
            # "no text" from a caption with a small embedding.
            self.null = nn.Parameter(torch.zeros(width))
            self.mix = nn.Sequential(Linear(width, width), nn.SiLU(), Linear(width, width))
        if config.text == "pocket":
            size = PocketTokenizer(config.words).size
            self.reader = PocketText(size, config.text_width, config.text_depth, config.text_length)
        if config.text != "none":
            self.pool = AttentionPool(config.text_width, width)
        if config.classes:
            self.classes = nn.Embedding(len(config.classes), width)

        widths, last = config.widths, len(config.widths) - 1
        self.stem = nn.Conv2d(pixels, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        channels, skips = config.channels, [config.channels]
        for i, wide in enumerate(widths):
            for _ in range(config.blocks):
                self.down.append(_level(config, channels, wide, attend=config.attends(i)))
                skips.append(channels := wide)
            if i < last:
                self.down.append(Downsample(wide))
                skips.append(wide)
        self.middle = nn.ModuleList([_level(config, channels, channels, attend=attend) for attend in (True, False)])
        for i, wide in reversed(list(enumerate(widths))):
            for _ in range(config.blocks + 1):
                self.up.append(_level(config, channels + skips.pop(), wide, attend=config.attends(i)))
                channels = wide
            if i > 0:
                self.up.append(Upsample(wide))
        self.norm = _group_norm(channels)
        self.head = _scale_down(nn.Conv2d(channels, pixels, 3, padding=1))

    def forward(
        self, z_BCTHW: Tensor, log_snr_B: Tensor, cond_BE: Tensor | None = None, *, independent: int = 0
    ) -> Tensor:
        """Return the raw output for noisy clips of any number of frames.

        ``log_snr`` is [B], or [B, T] where frames differ; ``cond`` is [B, E] or [B, T, E]. The last ``independent``
        frames are separate images: they attend to themselves only, and no other frame attends to them. With
        ``independent = T`` the network is an image model applied frame by frame.
        """
        batch, _, frames, _, _ = z_BCTHW.shape
        p = self.config.patch
        e_NE = self._embed(log_snr_B, cond_BE, batch, frames)
        clip = max(frames - independent, 0)
        x_NCHW = self.stem(rearrange(z_BCTHW, _FOLD, p=p, q=p).contiguous(memory_format=torch.channels_last))
        skips = [x_NCHW]
        for layer in self.down:
            x_NCHW = layer(x_NCHW, e_NE, frames, clip)
            skips.append(x_NCHW)
        for layer in self.middle:
            x_NCHW = layer(x_NCHW, e_NE, frames, clip)
        for layer in self.up:
            if isinstance(layer, UNetLevel):
                x_NCHW = torch.cat([x_NCHW, skips.pop()], dim=1)
            x_NCHW = layer(x_NCHW, e_NE, frames, clip)
        x_NCHW = self.head(F.silu(self.norm(x_NCHW)))
        return rearrange(x_NCHW, _UNFOLD, t=frames, p=p, q=p).contiguous()

    def encode(
        self,
        text_BLD: Tensor | None = None,
        keep_BL: Tensor | None = None,
        *,
        labels_B: Tensor | None = None,
        drop_B: Tensor | None = None,
    ) -> Tensor:
        """Encode text embeddings and/or class labels as condition vectors [B, E]; the null where ``drop`` is true.

        The result does not depend on the noise level, so sampling encodes once.
        """
        parts = []
        if text_BLD is not None:
            parts.append(self.pool(text_BLD, keep_BL))
        if labels_B is not None:
            parts.append(self.classes(labels_B))
        cond_BE = torch.stack(parts).sum(0)
        return cond_BE if drop_B is None else torch.where(drop_B[:, None], self.null, cond_BE)

    def _embed(self, log_snr_B: Tensor, cond_BE: Tensor | None, batch: int, frames: int) -> Tensor:
        e_BTE = self.noise(log_snr_B.reshape(batch, -1))
        if self.config.conditional:
            cond_BTE = (self.null if cond_BE is None else cond_BE).to(e_BTE)
            e_BTE = e_BTE + self.mix(cond_BTE[:, None] if cond_BTE.ndim == 2 else cond_BTE)  # noqa: PLR2004
        return F.silu(e_BTE).expand(batch, frames, -1).flatten(0, 1)


class UNetLevel(nn.Module):
    """A residual block, then spatial attention, then temporal attention."""

    def __init__(self, block: ResBlock, space: SpatialAttention | None, time: TemporalAttention | None) -> None:
        super().__init__()
        self.block, self.space, self.time = block, space, time

    def forward(self, x_NCHW: Tensor, e_NE: Tensor, frames: int, clip: int) -> Tensor:
        x_NCHW = self.block(x_NCHW, e_NE)
        if self.space is None or self.time is None:
            return x_NCHW
        x_NSC = rearrange(x_NCHW, "n c h w -> n (h w) c")
        x_NSC = self.time(self.space(x_NSC), frames, clip)
        return rearrange(x_NSC, "n (h w) c -> n c h w", h=x_NCHW.shape[2])


class ResBlock(nn.Module):
    """Two 1×3×3 convolutions (3×3 on folded frames) with the embedding added in between (§3)."""

    def __init__(self, wide_in: int, wide_out: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = _group_norm(wide_in), nn.Conv2d(wide_in, wide_out, 3, padding=1)
        self.embed = Linear(width, wide_out)
        self.norm2, self.conv2 = _group_norm(wide_out), _scale_down(nn.Conv2d(wide_out, wide_out, 3, padding=1))
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(wide_in, wide_out, 1) if wide_in != wide_out else nn.Identity()

    def forward(self, x_NCHW: Tensor, e_NE: Tensor) -> Tensor:
        h_NCHW = self.conv1(F.silu(self.norm1(x_NCHW))) + self.embed(e_NE)[:, :, None, None]
        return self.skip(x_NCHW) + self.conv2(self.dropout(F.silu(self.norm2(h_NCHW))))


class SpatialAttention(nn.Module):
    """Self-attention over the positions of each frame."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.heads = channels // head_dim
        self.norm = nn.LayerNorm(channels)
        self.qkv = Linear(channels, 3 * channels, bias=False)
        self.out = _scale_down(Linear(channels, channels))

    def forward(self, x_NSC: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm(x_NSC)), "n s (three h d) -> three n h s d", three=3, h=self.heads)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x_NSC + self.out(rearrange(mixed, "n h s d -> n s (h d)"))


class TemporalAttention(nn.Module):
    """Self-attention over the frames of each position, with relative positions (Shaw et al. 2018).

    ``logit_ij = q_i · (k_j + r_{j-i}) / sqrt(d)`` (their eq. 4), with vectors r shared by the heads and clipped at
    ``reach`` (their eq. 3). The relative *values* of eq. 3 are omitted: they would give equal frames unequal outputs,
    so a static clip would not stay static.

    Frames from ``clip`` on are independent images. A frame that attends to itself only has weight 1, so its output is
    its own value vector; no mask is needed, and nothing can leak.
    """

    def __init__(self, channels: int, head_dim: int, reach: int) -> None:
        super().__init__()
        self.heads, self.reach = channels // head_dim, max(reach, 1)
        self.norm = nn.LayerNorm(channels)
        self.qk = Linear(channels, 2 * channels, bias=False)
        self.v = Linear(channels, channels, bias=False)
        self.relative = nn.Parameter(torch.empty(2 * self.reach + 1, head_dim))
        nn.init.normal_(self.relative, std=1 / math.sqrt(head_dim))
        self.out = _scale_down(Linear(channels, channels))

    def forward(self, x_NSC: Tensor, frames: int, clip: int) -> Tensor:
        x_BTSC = x_NSC.unflatten(0, (-1, frames))
        y_BTSC = self.norm(x_BTSC)
        mixed_BTSC = self.v(y_BTSC)
        if clip > 1:
            attended = self._attend(self.qk(y_BTSC[:, :clip]), mixed_BTSC[:, :clip])
            mixed_BTSC = torch.cat([attended, mixed_BTSC[:, clip:]], dim=1) if clip < frames else attended
        return x_NSC + self.out(mixed_BTSC).flatten(0, 1)

    def _attend(self, qk: Tensor, v: Tensor) -> Tensor:
        """Batched products: faster than fused attention over few frames, and able to add the relative logits."""
        batch, clip, positions, _ = v.shape
        q, k = rearrange(qk, "b t s (two h d) -> two (b s h) t d", two=2, h=self.heads)
        v = rearrange(v, "b t s (h d) -> (b s h) t d", h=self.heads)
        q = q / math.sqrt(q.shape[-1])
        frame = torch.arange(clip, device=q.device)
        offset_TT = (frame[None, :] - frame[:, None]).clamp(-self.reach, self.reach) + self.reach
        relative_TdT = self.relative[offset_TT].transpose(1, 2).to(q.dtype)
        logits = torch.bmm(q.transpose(0, 1), relative_TdT).transpose(0, 1)
        mixed = torch.bmm(torch.baddbmm(logits, q, k.transpose(1, 2)).softmax(-1), v)
        return rearrange(mixed, "(b s h) t d -> b t s (h d)", b=batch, s=positions)


class AttentionPool(nn.Module):
    """Pools text embeddings into one vector: a learned query attends to the words.

    ``forward(text_BLD, keep_BL) -> cond_BE``; words where ``keep`` is false are masked out.
    """

    def __init__(self, text_width: int, width: int, head_dim: int = 32) -> None:
        super().__init__()
        self.heads = max(text_width // head_dim, 1)
        self.norm = nn.LayerNorm(text_width)
        self.query = nn.Parameter(torch.empty(text_width))
        nn.init.normal_(self.query)
        self.kv = Linear(text_width, 2 * text_width, bias=False)
        self.out = Linear(text_width, width)

    def forward(self, text_BLD: Tensor, keep_BL: Tensor | None) -> Tensor:
        k, v = rearrange(self.kv(self.norm(text_BLD)), "b l (two h d) -> two b h l d", two=2, h=self.heads)
        q = rearrange(self.query, "(h d) -> h 1 d", h=self.heads).expand(len(text_BLD), -1, -1, -1)
        mask = None if keep_BL is None else keep_BL[:, None, None, :]
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), "b h 1 d -> b (h d)"))


class Downsample(nn.Module):
    """Halves height and width by a strided 1×3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x_NCHW: Tensor, *_: Tensor | int) -> Tensor:
        return self.conv(x_NCHW)


class Upsample(nn.Module):
    """Doubles height and width: nearest neighbour, then a 1×3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_NCHW: Tensor, *_: Tensor | int) -> Tensor:
        return self.conv(F.interpolate(x_NCHW, scale_factor=2, mode="nearest"))


def _level(config: Config, wide_in: int, wide_out: int, *, attend: bool) -> UNetLevel:
    block = ResBlock(wide_in, wide_out, 4 * config.channels, config.dropout)
    if not attend:
        return UNetLevel(block, None, None)
    space = SpatialAttention(wide_out, config.head_dim)
    return UNetLevel(block, space, TemporalAttention(wide_out, config.head_dim, config.frames - 1))


def _group_norm(channels: int) -> nn.GroupNorm:
    """Group norm of at most 32 groups of at least 8 channels. Frames are batch items, so statistics are per frame."""
    groups = next(g for g in range(max(min(32, channels // 8), 1), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def _scale_down(layer: _Layer) -> _Layer:
    with torch.no_grad():
        layer.weight.mul_(_BRANCH_GAIN)
        if layer.bias is not None:
            layer.bias.zero_()
    return layer
