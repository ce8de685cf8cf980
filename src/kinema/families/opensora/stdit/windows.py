"""Attention within windows of a clip: some rows and columns of tokens, at all times (Open-Sora 1.3).

The original pads a clip to whole windows and excludes padded keys; here the windows at the right and at the bottom are
smaller instead, which is the same attention.

Letters: B batch, T H W frames, rows and columns of tokens, S = H·W, D width, h heads, K width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from einops import rearrange
from torch import Tensor

from kinema.families.opensora.stdit.layers import Attention
from kinema.families.opensora.stdit.positions import Turns
from kinema.nn.attention import attend


def over_windows(
    attention: Attention, x_BTSD: Tensor, turns: Turns, grid: tuple[int, int], window: tuple[int, int]
) -> Tensor:
    """Attention within each window of a grid of tokens."""
    q, k, v = (y.unflatten(2, grid) for y in attention.queries_keys_values(x_BTSD, turns))
    bands = []
    for rows, height in parts(grid[0], window[0]):
        band = []
        for columns, width in parts(grid[1], window[1]):
            cut = (slice(None), slice(None), rows, columns)
            band.append(_attended(q[cut], k[cut], v[cut], height, width))
        bands.append(torch.cat(band, dim=3))
    return attention.proj(torch.cat(bands, dim=2).flatten(2, 3))


def parts(size: int, window: int) -> Iterator[tuple[slice, int]]:
    """The stretch of whole windows and the rest, each with the size of its windows."""
    whole = size - size % window
    if whole:
        yield slice(0, whole), window
    if whole < size:
        yield slice(whole, size), size - whole


def _attended(q: Tensor, k: Tensor, v: Tensor, height: int, width: int) -> Tensor:
    """B×T×H×W×h×K, cut into windows of this size; returns B×T×H×W×D."""
    batch, frames, rows, columns = q.shape[:4]
    windows = (rearrange(x, "b t (i y) (j x) h k -> (b i j) h (t y x) k", y=height, x=width) for x in (q, k, v))
    return rearrange(
        attend(*windows), "(b i j) h (t y x) k -> b t (i y) (j x) (h k)",
        b=batch, i=rows // height, j=columns // width, t=frames, y=height, x=width,
    )  # fmt: skip
