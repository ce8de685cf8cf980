"""Rotary position embeddings over several axes (Su et al. 2021; the axes of Flux and of video transformers).

Letters: L tokens, A axes (time, row, column), D width of a head, P = D / 2 pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Layout = Literal["half", "adjacent"]
"""Which two features of a head turn together: i and i + D/2 (Liger, LLaMA), or 2i and 2i + 1 (Flux, Wan)."""


def video_positions(
    frames: int, rows: int, columns: int, *, text: int = 0, device: torch.device | None = None
) -> Tensor:
    """Positions ``[text + frames·rows·columns, 3]`` of text tokens, all zero, then of video tokens by (t, y, x)."""
    axes = [torch.arange(size, device=device, dtype=torch.float32) for size in (frames, rows, columns)]
    video_LA = torch.cartesian_prod(*axes)
    return torch.cat([video_LA.new_zeros(text, 3), video_LA])


def angles(positions_LA: Tensor, widths: Sequence[int], theta: float = 10_000.0) -> Tensor:
    """Angles ``[L, P]``: axis a turns ``widths[a] / 2`` pairs, pair k at the rate ``theta^(-2k / widths[a])``.

    Computed in float64 on the CPU, since some devices lack it; returned as float32 on the positions' device. Raises
    ValueError for an odd width.
    """
    if any(width % 2 for width in widths):
        raise ValueError(f"rotary axes have even widths, got {tuple(widths)}")
    if positions_LA.is_meta:
        return positions_LA.new_empty(len(positions_LA), sum(widths) // 2)
    rates = [theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width) for width in widths]
    turned = [positions_LA[:, axis, None].cpu().double() * rate for axis, rate in enumerate(rates)]
    return torch.cat(turned, dim=-1).float().to(positions_LA.device)


def rotate(x: Tensor, cos_LP: Tensor, sin_LP: Tensor, layout: Layout = "half") -> Tensor:
    """Queries or keys ``[…, L, D]`` with each pair of features turned by its angle.

    ``cos_LP`` and ``sin_LP`` broadcast against ``[…, L, P]``.
    """
    if layout == "half":
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos_LP - b * sin_LP, b * cos_LP + a * sin_LP], dim=-1)
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos_LP - b * sin_LP, b * cos_LP + a * sin_LP], dim=-1).flatten(-2)


def rotate_(x: Tensor, cos_LP: Tensor, sin_LP: Tensor, layout: Layout = "half") -> Tensor:
    """`rotate` in place, which holds one copy of half of ``x``; for use without gradients."""
    a, b = x.chunk(2, dim=-1) if layout == "half" else x.unflatten(-1, (-1, 2)).unbind(-1)
    before = a.clone()
    a.mul_(cos_LP).addcmul_(b, sin_LP, value=-1)
    b.mul_(cos_LP).addcmul_(before, sin_LP)
    return x


def adjacent_to_half(rows: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection (or its bias), [heads·D, …], moved from layout "adjacent" to "half".

    Attention scores stay the same: new[i] = old[2i] and new[i + D/2] = old[2i + 1] within each head.
    """
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def half_to_adjacent(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `adjacent_to_half`."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
