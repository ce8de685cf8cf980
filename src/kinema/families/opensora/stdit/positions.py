"""Positions of tokens: sinusoids that are added, and rotary angles.

Letters: T H W frames, rows and columns of tokens, L tokens, D width, P pairs of a head's features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kinema.nn.meta import placed
from kinema.nn.rope import rotate, rotate_

PERIOD = 10_000.0


def waves(position_L: Tensor, width: int, rates: torch.dtype = torch.float32) -> Tensor:
    """Sines, then cosines, [L, width]; their rates are rounded to ``rates``."""
    half = width // 2
    rate_D = PERIOD ** (-torch.arange(half, device=position_L.device, dtype=torch.float32) / half)
    angle_LD = position_L[:, None] * rate_D.to(rates).float()
    return torch.cat([angle_LD.sin(), angle_LD.cos()], dim=-1)


def grid_table(
    grid: tuple[int, int], width: int, scale: float, *, base: int | None = None, like: Tensor, rounded: bool = False
) -> Tensor:
    """Positions [H, W, D] of a grid of tokens, in the dtype and on the device of ``like``: half the width for the
    column, half for the row.

    A position is divided by ``scale``; with ``base``, each axis is stretched to that many tokens (STDiT2, STDiT3).
    ``rounded``: the rates have the precision of the weights, as they were trained with (1.1 to 1.3).
    """
    rates = like.dtype if rounded else torch.float32
    steps = ((base / n if base else 1) / scale for n in grid)
    ordinals = (torch.arange(n, device=like.device, dtype=torch.float32) for n in grid)
    row, column = (waves(n * step, width // 2, rates) for n, step in zip(ordinals, steps, strict=True))
    rows, columns = grid
    table = torch.cat([column.expand(rows, -1, -1), row[:, None].expand(-1, columns, -1)], dim=-1)
    return table.to(like.dtype)


class Rotary(nn.Module):
    """Rates of rotary angles, which the published files keep."""

    def __init__(self, features: int) -> None:
        super().__init__()
        rate_P = placed((features // 2,), lambda: PERIOD ** (-torch.arange(0, features, 2).float() / features))
        self.freqs = nn.Parameter(rate_P, requires_grad=False)


class Turns(NamedTuple):
    """Cosines and sines of every token's angles, [L, P] or [T, L, P]; features 2i and 2i + 1 turn together."""

    cos: Tensor
    sin: Tensor

    def applied(self, x_LhK: Tensor) -> Tensor:
        """Queries or keys […, L, h, K], turned; in place without gradients."""
        turned = rotate if torch.is_grad_enabled() else rotate_
        return turned(x_LhK, self.cos[..., None, :], self.sin[..., None, :], "adjacent")


def _angles(position_L: Tensor, rate_P: Tensor) -> Tensor:
    # In the precision of the weights, as the published models were trained.
    return position_L.to(rate_P.dtype)[:, None] * rate_P


def _turns(angles: Tensor) -> Turns:
    return Turns(angles.cos(), angles.sin())


def _local(n: int, window: int, scale: float, rate_P: Tensor) -> Tensor:
    """Angles of n tokens, counted from the start of their window."""
    return _angles((torch.arange(n, device=rate_P.device) % window).to(rate_P.dtype) / scale, rate_P)


def time_turns(frames: int, rate_P: Tensor) -> Turns:
    """Of one token over time."""
    return _turns(_angles(torch.arange(frames, device=rate_P.device), rate_P))


def space_turns(grid: tuple[int, int], scale: float, rate_P: Tensor) -> Turns:
    """Of the tokens of one frame, (y, x); the first third of the features, which turns with time, stays."""
    return _box_turns((1, *grid), grid, scale, rate_P)


def window_turns(shape: tuple[int, int, int], window: tuple[int, int], scale: float, rate_P: Tensor) -> Turns:
    """Of all tokens, [T, H·W, P]: rows and columns count from the start of their window and are divided by ``scale``,
    frames count from the start of the clip."""
    return _box_turns(shape, window, scale, rate_P)


def _box_turns(shape: tuple[int, int, int], window: tuple[int, int], scale: float, rate_P: Tensor) -> Turns:
    frames, rows, columns = shape
    time = _angles(torch.arange(frames, device=rate_P.device), rate_P)[:, None, None]
    row = _local(rows, window[0], scale, rate_P)[None, :, None]
    column = _local(columns, window[1], scale, rate_P)[None, None]
    angles = torch.cat([each.expand(*shape, -1) for each in (time, row, column)], dim=-1)
    return _turns(angles.flatten(1, 2).squeeze(0))
