"""Layers of latent-diffusion U-Nets and their KL codecs (Rombach et al. 2022), with diffusers' parameter names.

Used by Stable Video Diffusion (with `vae.kl2d`), AnimateDiff and Lumiere.

Letters: N images (clips × frames), B clips, T frames, C channels, H W rows and columns, S positions or tokens,
L context tokens, E width of the noise-level embedding, D channels of one head.
Feature maps are ``NCHW`` in channels-last memory, so that viewing them as tokens ``NSC`` needs no copy.
Where no gradient is needed, activations are overwritten after their last use.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from kinema import processor
from kinema.nn.attention import attend
from kinema.nn.costs import RATE, rows_at_once
from kinema.nn.linear import Linear, linear, linear_gelu
from kinema.nn.winograd import conv_after_silu

GROUPS = 32
PART = 2**19
"""Values that `upsample_2x` upsamples at a time into a given buffer."""
SMALL = 2**9
"""Up to this number of positions, a half-precision group norm is computed in float32 on a CPU."""


def silu_(x: Tensor) -> Tensor:
    """SiLU, in place unless x requires a gradient."""
    return F.silu(x, inplace=not x.requires_grad)


def add_(x: Tensor, y: Tensor) -> Tensor:
    """``x + y``, in place where no gradient is recorded; x must be a fresh tensor of the full shape."""
    return x + y if x.requires_grad or y.requires_grad else x.add_(y)


def add_scaled_(x: Tensor, h: Tensor, share: Tensor) -> Tensor:
    """``x + share * h``, in place where no gradient is recorded."""
    if x.requires_grad or h.requires_grad or share.requires_grad:
        return torch.addcmul(x, h, share)
    return x.addcmul_(h, share)


class GroupNorm(nn.GroupNorm):
    """Group norm that uses float32 where PyTorch's half-precision CPU kernel (small channels-last maps) is up to five
    times slower.
    """

    def forward(self, x: Tensor) -> Tensor:
        halves = x.is_cpu and x.dtype.itemsize < 4 and self.weight.dtype == x.dtype and not torch.is_grad_enabled()
        if halves and x.shape[2:].numel() <= SMALL:
            weight, bias = self.weight.float(), self.bias.float()
            return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)
        return super().forward(x)


def group_norm(channels: int, eps: float) -> GroupNorm:
    return GroupNorm(GROUPS, channels, eps=eps)


def with_input_grad(norm: nn.GroupNorm, x_NCHW: Tensor) -> Tensor:
    """Make the input of a norm in training require a gradient, even after frozen layers.

    Works around torch 2.13's group norm, which crashes on channels-last inputs without a gradient if its weights need
    one. Kept out of the ``forward`` of blocks, which must compile as one graph.
    """
    if norm.weight.requires_grad and not x_NCHW.requires_grad and torch.is_grad_enabled():
        return x_NCHW.detach().requires_grad_()
    return x_NCHW


def scale_and_shift(norm: nn.GroupNorm, parts_NRSC: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the scale and shift of a group norm, N×C each in float32 or wider; parts have R rows of S positions."""
    wide, count = torch.promote_types(norm.weight.dtype, torch.float32), 0
    total_NC = square_NC = norm.weight.new_zeros((), dtype=processor.widest(norm.weight.device))
    for part_NRSC in (part.to(wide) for part in parts_NRSC):
        total_NC = total_NC + _sums(part_NRSC)
        square_NC = square_NC + _sums(part_NRSC.square())
        count += part_NRSC[0, ..., 0].numel()
    width = norm.num_channels // norm.num_groups
    mean_NG, power_NG = (x.unflatten(1, (-1, width)).sum(-1) / (width * count) for x in (total_NC, square_NC))
    rate_NG = (power_NG - mean_NG.square()).clamp_min(0).add(norm.eps).rsqrt()
    scale_NC = rate_NG.repeat_interleave(width, 1) * norm.weight
    shift_NC = norm.bias - mean_NG.repeat_interleave(width, 1) * scale_NC
    return scale_NC.to(wide), shift_NC.to(wide)


def _sums(x_NRSC: Tensor) -> Tensor:
    """Sum each channel, N×C, in float64 if the device has it."""
    if not x_NRSC.is_cpu:
        return x_NRSC.sum((1, 2)).to(processor.widest(x_NRSC.device))
    # A product with ones is 20 times faster than ``sum``.
    with torch.autocast("cpu", enabled=False):  # autocast would compute the product in half precision
        return torch.matmul(x_NRSC.new_ones(1, x_NRSC.shape[2]), x_NRSC).double().sum((1, 2))


def tokens(x_NCHW: Tensor) -> Tensor:
    """``NCHW -> NSC``, without a copy in channels-last memory."""
    return x_NCHW.permute(0, 2, 3, 1).flatten(1, 2)


def to_map(x_NSC: Tensor, height: int) -> Tensor:
    """``NSC -> NCHW`` in channels-last memory, without a copy."""
    return x_NSC.unflatten(1, (height, -1)).permute(0, 3, 1, 2)


class TimestepEmbedding(nn.Module):
    """Two linear layers with SiLU in between: sinusoids […, features] to an embedding […, out]."""

    def __init__(self, features: int, width: int, out: int | None = None) -> None:
        super().__init__()
        self.linear_1 = Linear(features, width)
        self.linear_2 = Linear(width, out or width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(silu_(self.linear_1(x)))


class Shortcut(nn.Conv2d):
    """A 1×1 convolution, computed as a linear layer: PyTorch computes those of few images on one thread with MKL."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return to_map(linear(tokens(x_NCHW), self.weight.flatten(1), self.bias), x_NCHW.shape[2])


class ResBlock(nn.Module):
    """Residual block: GroupNorm, SiLU and 3×3 convolution, twice, with the noise-level embedding added in between.

    ``emb`` is the width of the embedding, None for a codec. ``forward`` takes the embedding after its SiLU, one row per
    image, or per clip and shared by its frames.
    """

    def __init__(self, channels: int, out: int, emb: int | None = None, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm1 = group_norm(channels, eps)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.time_emb_proj = Linear(emb, out) if emb else None
        self.norm2 = group_norm(out, eps)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = Shortcut(channels, out, 1) if channels != out else None

    def forward(self, x_NCHW: Tensor, emb_NE: Tensor | None = None, *, overwrite: bool = False) -> Tensor:
        """``overwrite`` reuses x's memory for the result if no gradient is recorded and there is no shortcut layer."""
        h = conv_after_silu(self.conv1, self.norm1(x_NCHW))
        if self.time_emb_proj is not None and emb_NE is not None:
            shift_NC = self.time_emb_proj(emb_NE)
            shift_NC = shift_NC.repeat_interleave(len(h) // len(shift_NC), dim=0)
            h = add_(h, shift_NC[:, :, None, None])
        h = conv_after_silu(self.conv2, self.norm2(h))
        return self.added(x_NCHW, h, overwrite)

    def added(self, x_NCHW: Tensor, h: Tensor, overwrite: bool) -> Tensor:
        if overwrite and self.conv_shortcut is None and not (h.requires_grad or x_NCHW.requires_grad):
            return x_NCHW.add_(h)
        return add_(h, x_NCHW if self.conv_shortcut is None else self.conv_shortcut(x_NCHW))


class Downsample(nn.Module):
    """3×3 convolution of stride 2; codecs pad only at the right and bottom, as in training."""

    def __init__(self, channels: int, *, codec: bool = False) -> None:
        super().__init__()
        self.codec = codec
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if codec else 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_NCHW, (0, 1, 0, 1)) if self.codec else x_NCHW)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling to ``size`` (rows, columns; default: twice the input's), then a 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_NCHW: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        height, width = x_NCHW.shape[-2:]
        size = size or (2 * height, 2 * width)
        if size == (2 * height, 2 * width) and x_NCHW.is_cpu:
            return upsample_2x(self.conv, x_NCHW)
        return self.conv(F.interpolate(x_NCHW, size=size, mode="nearest"))


def upsample_2x(conv: nn.Conv2d, x_NCHW: Tensor, buffer: Tensor | None = None) -> Tensor:
    """Nearest-neighbour upsampling by two and a 3×3 convolution, computed as four 2×2 convolutions of the small map.

    Two of the three rows under the kernel are copies of one, so their weights add up: 4/9 of the multiplications,
    without the upsampled map. ``buffer``, 4·N·H·W·K values, receives the result; a few rows at a time are then
    computed, which needs little further memory.
    """
    n, _, h, w = x_NCHW.shape
    around = F.pad(x_NCHW, (1, 1, 1, 1))
    wide = conv.weight.to(torch.promote_types(conv.weight.dtype, torch.float32))
    kernels = [[kernel.to(conv.weight.dtype) for kernel in _pairs(tall, 3)] for tall in _pairs(wide, 2)]
    count = 4 * n * h * w * conv.out_channels
    out_NHaWbC = (x_NCHW.new_empty(count) if buffer is None else buffer).view(n, h, 2, w, 2, conv.out_channels)
    few = h if buffer is None else max(1, PART // (n * w * conv.out_channels))
    for at in range(0, h, few):
        end = min(at + few, h)
        for a, b in product((0, 1), (0, 1)):
            part = F.conv2d(around[:, :, a + at : a + end + 1, b : b + w + 1], kernels[a][b], conv.bias)
            out_NHaWbC[:, at:end, a, :, b] = part.permute(0, 2, 3, 1)
    return out_NHaWbC.view(n, 2 * h, 2 * w, -1).permute(0, 3, 1, 2)


def _pairs(weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Reduce three taps along an axis to two, for even and for odd outputs."""
    first, middle, last = weight.split(1, axis)
    return torch.cat([first, middle + last], axis), torch.cat([first + middle, last], axis)


# -------------------------------------------------------------------------------------- attention


class Attention(nn.Module):
    """Multi-head self-attention, or cross-attention to a context; heads are ``width / heads`` wide."""

    def __init__(self, width: int, heads: int, context: int | None = None, *, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = Linear(width, width, bias=bias)
        self.to_k = Linear(context or width, width, bias=bias)
        self.to_v = Linear(context or width, width, bias=bias)
        self.to_out = nn.ModuleList([Linear(width, width)])

    def forward(self, x_NSC: Tensor, context_NLC: Tensor | None = None) -> Tensor:
        source = x_NSC if context_NLC is None else context_NLC
        q, k, v = self._split(self.to_q(x_NSC)), self._split(self.to_k(source)), self._split(self.to_v(source))
        return self.to_out[0](rearrange(attend(q, k, v), "n h s d -> n s (h d)"))

    def of_one(self, token_B1C: Tensor) -> Tensor:
        """Cross-attention to a context of one token: the attention weight is 1, so queries and keys are not needed."""
        return self.to_out[0](self.to_v(token_B1C))

    def over_time(self, x_BTSC: Tensor, scale_TS: Tensor | None = None) -> Tensor:
        """Temporal attention: each position attends across frames; ``scale`` [T or 1, S or 1] multiplies the keys."""
        q, k, v = (
            rearrange(to(x_BTSC), "b t s (h d) -> b s h t d", h=self.heads) for to in (self.to_q, self.to_k, self.to_v)
        )
        if scale_TS is not None:
            k = k * scale_TS.T[:, None, :, None]
        return self.to_out[0](rearrange(attend(q, k, v), "b s h t d -> b t s (h d)"))

    def _split(self, x_NSC: Tensor) -> Tensor:
        return rearrange(x_NSC, "n s (h d) -> n h s d", h=self.heads)


def plain(layer: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a layer is exactly `Linear` in this precision, without forward hooks.

    Forward pre-hooks are allowed: they load offloaded weights, which the block's own hook loads as well.
    """
    return type(layer) is Linear and not layer._forward_hooks and layer.weight.dtype == dtype


class GEGLU(nn.Module):
    """A linear layer to twice the width; the GELU of one half gates the other (Shazeer 2020)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        gate = F.gelu(gate)
        return gate * value if gate.requires_grad else gate.mul_(value)


class FeedForward(nn.Module):
    """GEGLU of four times the width and a linear layer back. ``chunk`` tokens at a time need less memory.

    None: CPU inference uses the fastest number (`kinema.nn.costs`); otherwise all tokens in one pass.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(width, 4 * width), nn.Identity(), Linear(4 * width, width)])
        self.chunk: int | None = None

    def forward(self, x_etc_C: Tensor, onto: Tensor) -> Tensor:
        """Return the sum with ``onto``, of x's shape, in place if no gradient is recorded."""
        width, rows = x_etc_C.shape[-1], x_etc_C.numel() // x_etc_C.shape[-1]
        chunk = self.chunk
        if x_etc_C.is_cpu and not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            if chunk is None and x_etc_C.dtype.itemsize in RATE:
                chunk = rows_at_once(rows, width, x_etc_C.dtype.itemsize, torch.get_num_threads())
            in_place = onto.is_contiguous() and onto.dtype == x_etc_C.dtype and not onto.requires_grad
            if in_place and self._plain(x_etc_C.dtype):
                self._add_to(onto.view(rows, width), x_etc_C.reshape(rows, width), chunk or rows)
                return onto
        if chunk is None or chunk >= rows:
            out = self.net[2](self.net[0](x_etc_C))
        else:
            parts = x_etc_C.reshape(rows, width).split(chunk)
            out = torch.cat([self.net[2](self.net[0](part)) for part in parts]).view_as(x_etc_C)
        return add_(onto, out)

    def _plain(self, dtype: torch.dtype) -> bool:
        """Whether both layers are `plain` in the tokens' precision."""
        if torch.is_autocast_enabled("cpu") or type(self.net[0]) is not GEGLU or self.net[0]._forward_hooks:
            return False
        return plain(self.net[0].proj, dtype) and plain(self.net[2], dtype)

    def _add_to(self, out_RC: Tensor, x_RC: Tensor, chunk: int) -> None:
        """Add the layer's output to ``out``, ``chunk`` tokens at a time, which stay in cache from layer to layer."""
        wide, back = cast(Linear, self.net[0].proj), cast(Linear, self.net[2])
        (to_value, to_gate), (value_bias, gate_bias) = wide.weight.chunk(2), wide.bias.chunk(2)
        for x, out in zip(x_RC.split(chunk), out_RC.split(chunk), strict=True):
            gate = linear_gelu(x, to_gate, gate_bias)
            gate.mul_(linear(x, to_value, value_bias))
            out.add_(linear(gate, back.weight, back.bias))


def chunk_feed_forward(model: nn.Module, chunk: int | None) -> None:
    """Set all feed-forward layers of a model to process ``chunk`` tokens at a time, for less memory.

    None: the default of `FeedForward`.
    """
    for module in model.modules():
        if isinstance(module, FeedForward):
            module.chunk = chunk


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward layer, each with a layer norm and a residual connection."""

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, heads, context)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x_NSC: Tensor, context_BLC: Tensor) -> Tensor:
        """The context has one row per clip, shared by its frames. May overwrite x if no gradient is needed."""
        x_NSC = add_(x_NSC, self.attn1(self.norm1(x_NSC)))
        # A clip's frames form one sequence, so that keys and values are computed once per clip instead of per frame.
        x_BTSC = x_NSC.unflatten(0, (len(context_BLC), -1))
        if context_BLC.shape[1] == 1:
            x_BTSC = add_(x_BTSC, self.attn2.of_one(context_BLC)[:, None])
        else:
            x_BTSC = add_(x_BTSC, self.attn2(self.norm2(x_BTSC).flatten(1, 2), context_BLC).view_as(x_BTSC))
        x_NSC = x_BTSC.flatten(0, 1)
        return self.ff(self.norm3(x_NSC), onto=x_NSC)


def channels_last(model: nn.Module) -> None:
    """Store the weights of a network's convolutions in channels-last memory, matching its feature maps."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        elif isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)


def set_norm_groups(model: nn.Module, groups: int) -> None:
    """Set the number of groups of every group norm."""
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = groups


def export_contiguous(model: nn.Module) -> None:
    """Make a network's ``state_dict`` contiguous, even where it holds weights channels-last."""
    model.register_state_dict_post_hook(_contiguous)


def _contiguous(_module: nn.Module, state: dict[str, Tensor], _prefix: str, _metadata: object) -> None:
    for name, tensor in state.items():
        if not tensor.is_contiguous():
            state[name] = tensor.detach().contiguous()
