"""Temporal layers of Stable Video Diffusion, and their learned blend with an image network's spatial layers.

Letters: B clips, T frames, N = B·T images, C channels, H W rows and columns, S places, L context tokens, E width
of the noise-level embedding. Feature maps stay in channels-last memory, in which ``NCHW`` and ``BCTS`` have the same
bytes, so a temporal convolution is a 2D convolution over (frames, places): the same result several times faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.nn import winograd
from kinema.nn.embeddings import sinusoidal
from kinema.nn.ldm_unet import (
    Attention,
    FeedForward,
    ResBlock,
    TimestepEmbedding,
    TransformerBlock,
    add_,
    add_scaled_,
    group_norm,
    scale_and_shift,
    silu_,
    to_map,
    tokens,
)
from kinema.nn.linear import Linear

TRANSFORMER_EPS = 1e-6
STRIP, STRIP_ELSEWHERE = 2**19, 2**24
"""Elements of a feature map per strip of temporal layers: the size of a CPU's cache, or more on devices where every
call is a kernel launch."""


def fold(x_NCHW: Tensor, frames: int) -> Tensor:
    """``NCHW -> BCTS``: no copy in channels-last memory."""
    n, c, h, w = x_NCHW.shape
    return x_NCHW.permute(0, 2, 3, 1).reshape(n // frames, frames, h * w, c).permute(0, 3, 1, 2)


def unfold(x_BCTS: Tensor, height: int) -> Tensor:
    """``BCTS -> NCHW``: no copy in channels-last memory."""
    b, c, t, s = x_BCTS.shape
    return x_BCTS.permute(0, 2, 3, 1).reshape(b * t, height, s // height, c).permute(0, 3, 1, 2)


def over_time(conv: nn.Conv3d, x_BCTS: Tensor) -> Tensor:
    """Apply a convolution of kernel (3, 1, 1) with weight O×I×3×1×1."""
    return F.conv2d(x_BCTS, conv.weight[..., 0], conv.bias, padding=(1, 0))


def strip_conv(conv: nn.Conv3d, x_BCTS: Tensor) -> Callable[[Tensor], Tensor]:
    """Return `over_time` as a function of any strip of this map."""
    if winograd.is_faster_over_time(conv, x_BCTS):
        return winograd.convolve_over_time(conv)
    return lambda part: over_time(conv, part)


def conv_over_time(channels: int) -> nn.Conv3d:
    return nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))


class Mixer(nn.Module):
    """A learned blend of two estimates: the sigmoid of ``mix_factor`` [1] is the share of the first.

    The first is the spatial one in the U-Net, and the temporal one in the decoder (``reverse``).
    """

    def __init__(self, start: float, *, reverse: bool = False) -> None:
        super().__init__()
        self.reverse = reverse
        self.mix_factor = nn.Parameter(torch.tensor([start]))

    def temporal(self, image_only_BT: Tensor | None = None) -> Tensor:
        """The share of the temporal estimate, [1], or [B, T] with 0 for the frames in ``image_only``."""
        share = torch.sigmoid(self.mix_factor if self.reverse else -self.mix_factor)
        return share if image_only_BT is None else share.expand(image_only_BT.shape).masked_fill(image_only_BT, 0)


class TemporalResBlock(nn.Module):
    """GroupNorm over all frames, SiLU, 3-frame convolution, twice. ``forward`` returns the branch without the input."""

    def __init__(self, channels: int, emb: int | None, eps: float) -> None:
        super().__init__()
        self.norm1 = group_norm(channels, eps)
        self.conv1 = conv_over_time(channels)
        self.time_emb_proj = Linear(emb, channels) if emb else None
        self.norm2 = group_norm(channels, eps)
        self.conv2 = conv_over_time(channels)

    def forward(self, x_BCTS: Tensor, emb_BTE: Tensor | None = None) -> Tensor:
        h = over_time(self.conv1, silu_(self.norm1(x_BCTS)))
        if self.time_emb_proj is not None and emb_BTE is not None:
            h = add_(h, self._shift(emb_BTE))
        return over_time(self.conv2, silu_(self.norm2(h)))

    def add_to(
        self, x_BCTS: Tensor, share: Tensor, emb_BTE: Tensor | None = None, scratch: Scratch | None = None
    ) -> Tensor:
        """Return ``x + share * forward(x)``; without gradients in place, and large maps in strips.

        Only the norms mix places. With their statistics computed first, each strip of places goes through every layer
        while it is in the cache, and memory for one map besides x is needed instead of three (``scratch``, which
        successive blocks can share). A compiler fuses the layers itself.
        """
        whole = torch.is_grad_enabled() or torch.compiler.is_compiling()
        strips = [] if whole else strips_of(x_BCTS)
        if len(strips) <= 1:
            return add_scaled_(x_BCTS, self(x_BCTS, emb_BTE), share)
        shift = None if self.time_emb_proj is None or emb_BTE is None else self._shift(emb_BTE)
        norm = norm_silu(self.norm1, [x_BCTS[..., strip] for strip in strips])
        parts = allocate_strips(x_BCTS, strips, scratch or Scratch())
        conv1, conv2 = (strip_conv(conv, x_BCTS) for conv in (self.conv1, self.conv2))
        for strip, part in zip(strips, parts, strict=True):
            part.copy_(conv1(norm(x_BCTS[..., strip])))
            if shift is not None:
                part.add_(shift)
        norm = norm_silu(self.norm2, parts)
        for strip, part in zip(strips, parts, strict=True):
            x_BCTS[..., strip].addcmul_(conv2(norm(part)), share)
        return x_BCTS

    def _shift(self, emb_BTE: Tensor) -> Tensor:
        assert self.time_emb_proj is not None
        return self.time_emb_proj(emb_BTE).transpose(1, 2)[..., None]


class Scratch:
    """Memory reused by successive blocks: on a CPU, allocating fresh pages costs more than writing to them."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def take(self, count: int, like: Tensor) -> Tensor:
        """Return ``count`` elements, [count], of the dtype and device of ``like``; invalidates earlier results."""
        if self._buffer.numel() < count or self._buffer.dtype != like.dtype or self._buffer.device != like.device:
            self._buffer = torch.empty(0)  # free it before allocating more
            self._buffer = like.new_empty(count)
        return self._buffer[:count]


def allocate_strips(x_BCTS: Tensor, strips: Sequence[slice], scratch: Scratch) -> list[Tensor]:
    """Allocate contiguous memory for every strip of a map like x."""
    b, c, frames, places = x_BCTS.shape
    sizes = [len(range(*strip.indices(places))) for strip in strips]
    pieces = scratch.take(x_BCTS.numel(), x_BCTS).split([b * frames * size * c for size in sizes])
    return [piece.view(b, frames, size, c).permute(0, 3, 1, 2) for piece, size in zip(pieces, sizes, strict=True)]


def strips_of(x_BCTS: Tensor) -> list[slice]:
    """Split the places of a map into strips."""
    b, c, frames, places = x_BCTS.shape
    most = max(1, (STRIP if x_BCTS.is_cpu else STRIP_ELSEWHERE) // (b * c * frames))
    return [slice(at, at + most) for at in range(0, places, most)]


def norm_silu(norm: nn.GroupNorm, parts_BCTS: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """Return group norm and SiLU as a function of any strip of a map, with statistics over all its ``parts``."""
    wide = torch.promote_types(parts_BCTS[0].dtype, torch.float32)
    affine = scale_and_shift(norm, [part.permute(0, 2, 3, 1) for part in parts_BCTS])
    scale, shift = (x_BC[..., None, None] for x_BC in affine)
    return lambda part: silu_(torch.addcmul(shift, part.to(wide), scale)).to(part.dtype)


class VideoResBlock(nn.Module):
    """A spatial residual block, a temporal one, and their blend.

    The temporal estimate is its input plus a branch, so the blend is the input plus the branch's share.
    """

    def __init__(self, channels: int, out: int, emb: int | None, eps: float) -> None:
        super().__init__()
        self.spatial_res_block = ResBlock(channels, out, emb, eps)
        self.temporal_res_block = TemporalResBlock(out, emb, eps)
        self.time_mixer = Mixer(0.5)

    def forward(self, x_NCHW: Tensor, emb_BTE: Tensor, frames: int, image_only_BT: Tensor | None = None) -> Tensor:
        """``emb_BTE`` is the embedding after SiLU, with T = 1 where all frames share it."""
        x_NCHW = self.spatial_res_block(x_NCHW, emb_BTE.flatten(0, 1))
        share = self.time_mixer.temporal(image_only_BT).to(x_NCHW.dtype)
        if image_only_BT is not None:
            share = share[:, None, :, None]
        return unfold(self.temporal_res_block.add_to(fold(x_NCHW, frames), share, emb_BTE), x_NCHW.shape[2])


def lerp_(x: Tensor, y: Tensor, share: Tensor) -> Tensor:
    """``x + share * (y - x)``, in place where no gradient is recorded."""
    if x.requires_grad or y.requires_grad or share.requires_grad:
        return torch.lerp(x, y, share)
    return x.lerp_(y, share)


class TemporalBlock(nn.Module):
    """A transformer block that attends over the frames of each place, preceded by an extra feed-forward layer.

    Norms and feed-forward layers act on single tokens, so only attention mixes frames and tokens keep their memory
    layout.
    """

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(width)
        self.ff_in = FeedForward(width)
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, heads, context)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x_BTSC: Tensor, context_BLC: Tensor) -> Tensor:
        """Without gradients, x may be overwritten."""
        x = self.ff_in(self.norm_in(x_BTSC), onto=x_BTSC)
        x = add_(x, self.attn1.over_time(self.norm1(x)))
        if context_BLC.shape[1] == 1:
            x = add_(x, self.attn2.of_one(context_BLC)[:, None])
        else:
            x = add_(x, self.attn2(self.norm2(x).flatten(1, 2), context_BLC).view_as(x))
        return self.ff(self.norm3(x), onto=x)


class VideoTransformer(nn.Module):
    """Residual spatial and temporal transformer blocks, blended, between two linear layers."""

    def __init__(self, channels: int, heads: int, context: int, depth: int = 1) -> None:
        super().__init__()
        self.norm = group_norm(channels, TRANSFORMER_EPS)
        self.proj_in = Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, heads, context) for _ in range(depth)])
        self.temporal_transformer_blocks = nn.ModuleList(
            [TemporalBlock(channels, heads, context) for _ in range(depth)]
        )
        self.time_pos_embed = TimestepEmbedding(channels, 4 * channels, channels)
        self.time_mixer = Mixer(0.5)
        self.proj_out = Linear(channels, channels)

    def forward(self, x_NCHW: Tensor, context_BLC: Tensor, frames: int, image_only_BT: Tensor | None = None) -> Tensor:
        n, c, height, _ = x_NCHW.shape
        wave_TC = sinusoidal(torch.arange(frames, device=x_NCHW.device), c).to(x_NCHW.dtype)
        position_TC = self.time_pos_embed(wave_TC)[:, None]
        share = self.time_mixer.temporal(image_only_BT).to(x_NCHW.dtype)
        if image_only_BT is not None:
            share = share[..., None, None]
        x_NSC = self.proj_in(tokens(self.norm(x_NCHW)))
        for over_space, along_time in zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True):
            x_NSC = over_space(x_NSC, context_BLC)
            x_BTSC = x_NSC.unflatten(0, (n // frames, frames))
            x_BTSC = lerp_(x_BTSC, along_time(x_BTSC + position_TC, context_BLC), share)
            x_NSC = x_BTSC.flatten(0, 1)
        return add_(to_map(self.proj_out(x_NSC), height), x_NCHW)
