"""Poses over time without their trembling, and through frames that lose the object.

What moves in the playroom moves in stretches of parabolas: straight, slowing down, thrown; a bounce breaks off and
begins another. A plain smoothing over time rounds that break by several pixels. Here every stretch of ``LENGTHS``
frames that holds a frame proposes the value of the quadratic fitted to it (Savitzky & Golay 1964, at every place of the
window), and counts by how well it fits and how long it is; the frame as it was is a proposal too. So a stretch over a
break, whose quadratic does not fit, has no say (as in the stencils of ENO schemes, Harten et al. 1987).

What a frame does not show is filled in before, by the quadratic of the frames about it, the nearest first (local
regression, Cleveland 1979). What only changes evenly, as size and opacity do, is the straight line of least absolute
differences: a few frames that are wrong do not bend it, unless they are a quarter of the clip and at its end.

Letters: B clips, T frames, W stretches.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

LENGTHS = (16, 12, 9, 7, 5)
"""Frames of a stretch; three always fit."""
_LONGER = 2.0
"""Log-odds of a stretch over one of half its length that fits as well."""
_MISFIT = 3.0
"""Log-odds that a stretch loses for every square of the tolerance by which its misfit exceeds 1."""
_RIDGE = 1e-4
_ABOUT = 1.5
"""Frames: deviation of the Gaussian by which the nearest ones say what a frame does not show. Three lost frames of an
orbit of 18 pixels are off by 1.3 at most, and by 4 where the clip ends with them."""
_ROUNDS, _NEAR = 12, 1e-3
"""Of reweighting, and the share of a line's scale below which a difference counts as none."""


def steadied(value_BT: Tensor, sure_BT: Tensor, tolerance: float) -> Tensor:
    """The values without what they tremble by, if that is ``tolerance`` (root mean square) or less; ``sure`` weighs."""
    inside_WT, basis_WT3 = (torch.tensor(table).to(value_BT) for table in _stretches(value_BT.shape[1]))
    if not len(inside_WT):
        return value_BT
    weight_BWT = inside_WT * sure_BT.clamp(min=1e-3)[:, None]
    weighted_BWT3 = weight_BWT[..., None] * basis_WT3
    gram_BW33 = torch.einsum("bwti,wtj->bwij", weighted_BWT3, basis_WT3)
    ridge = _RIDGE * torch.eye(3, dtype=value_BT.dtype, device=value_BT.device)
    # About the mean, so that the ridge pulls towards it and not towards 0.
    mean_BW1 = ((weight_BWT * value_BT[:, None]).sum(-1) / weight_BWT.sum(-1))[..., None]
    off_BWT = value_BT[:, None] - mean_BW1
    moment_BW3 = torch.einsum("bwti,bwt->bwi", weighted_BWT3, off_BWT)
    scale_BW11 = weight_BWT.sum(-1)[..., None, None]
    # Not checked (which would wait for a GPU): with the ridge there is a solution, of numbers that are numbers.
    fit_BW3 = torch.linalg.solve_ex(gram_BW33 / scale_BW11 + ridge, moment_BW3 / scale_BW11[..., 0]).result
    made_BWT = mean_BW1 + torch.einsum("bwi,wti->bwt", fit_BW3, basis_WT3)
    share_BWT = _shares(made_BWT.detach() - value_BT.detach()[:, None], weight_BWT.detach(), inside_WT, tolerance)
    return (share_BWT[:, :-1] * made_BWT).sum(1) + share_BWT[:, -1] * value_BT


def _shares(error_BWT: Tensor, weight_BWT: Tensor, inside_WT: Tensor, tolerance: float) -> Tensor:
    """How much each stretch says of each frame, and last the frame itself, B×(W+1)×T."""
    length_W = inside_WT.sum(1)
    square_BW = (weight_BWT * error_BWT.square()).sum(-1) / weight_BWT.sum(-1)
    misfit_BW = square_BW * (length_W / (length_W - 3)) / tolerance**2  # three numbers are fitted to it
    odds_BW = _LONGER * torch.log2(length_W / 3) - _MISFIT * (misfit_BW - 1).clamp(min=0)
    odds_BWT = odds_BW[..., None].masked_fill(inside_WT == 0, -math.inf)
    return torch.cat([odds_BWT, torch.zeros_like(odds_BWT[:, :1])], 1).softmax(1)


def filled(value_BT: Tensor, sure_BT: Tensor) -> Tensor:
    """The values, where a frame is not sure (0 to 1) those of the sure ones about it."""
    t_T = torch.arange(value_BT.shape[1], dtype=value_BT.dtype, device=value_BT.device)
    off_TT = t_T - t_T[:, None]  # of the second frame, as the first one sees it
    basis_TT3 = torch.stack([torch.ones_like(off_TT), off_TT, off_TT.square()], -1)
    weight_BTT = sure_BT[:, None].square() * torch.exp(-0.5 * (off_TT / _ABOUT).square()) + 1e-12
    weight_BTT = weight_BTT / weight_BTT.sum(-1, keepdim=True)
    mean_BT = (weight_BTT * value_BT[:, None]).sum(-1)
    weighted_BTT3 = weight_BTT[..., None] * basis_TT3
    gram_BT33 = torch.einsum("btsi,tsj->btij", weighted_BTT3, basis_TT3)
    ridge = _RIDGE * torch.eye(3, dtype=value_BT.dtype, device=value_BT.device)
    moment_BT3 = torch.einsum("btsi,bts->bti", weighted_BTT3, value_BT[:, None] - mean_BT[..., None])
    made_BT = mean_BT + torch.linalg.solve_ex(gram_BT33 + ridge, moment_BT3).result[..., 0]
    low_B1, high_B1 = (  # no further than any frame that is sure
        value_BT.masked_fill(sure_BT < sure_BT.amax(1, keepdim=True), sign * math.inf).mul(sign).amin(1, True).mul(sign)
        for sign in (1, -1)
    )
    return torch.lerp(made_BT.clamp(low_B1, high_B1), value_BT, sure_BT)


def least_absolute_line(value_BT: Tensor, sure_BT: Tensor) -> Tensor:
    """The straight line over the clip of least absolute differences, by least squares reweighted (IRLS).

    The last weights are those of a Cauchy distribution about it: its gradient reaches every frame that lies near, not
    only the two that it passes through.
    """
    t_T = torch.linspace(-1, 1, value_BT.shape[1], dtype=value_BT.dtype, device=value_BT.device)
    weight_BT = sure_BT = sure_BT.clamp(min=1e-3)
    near = _NEAR * value_BT.detach().abs().mean(1, keepdim=True).clamp(min=1e-6)
    for i in range(_ROUNDS):
        share_BT = weight_BT / weight_BT.sum(1, keepdim=True)
        mean_B1, at_B1 = ((share_BT * x).sum(1, keepdim=True) for x in (value_BT, t_T))
        along_BT = t_T - at_B1
        slope_B1 = (share_BT * along_BT * value_BT).sum(1, keepdim=True)
        slope_B1 = slope_B1 / (share_BT * along_BT.square()).sum(1, keepdim=True).clamp(min=_RIDGE)
        made_BT = mean_B1 + slope_B1 * along_BT
        off_BT = (value_BT - made_BT).detach().abs()
        if i + 2 < _ROUNDS:
            weight_BT = sure_BT / torch.maximum(off_BT, near)
        else:
            scale_B1 = 2 * off_BT.median(1, keepdim=True).values + near
            weight_BT = sure_BT / (1 + (off_BT / scale_B1).square())
    return made_BT


@cache
def _stretches(frames: int) -> tuple[Floats, Floats]:
    """Which frames each stretch holds, W×T, and 1, s, s² along it, W×T×3, s from -1 to 1."""
    spans = [(n, first) for n in LENGTHS if n <= frames for first in range(frames - n + 1)]
    inside, along = np.zeros((2, len(spans), frames))
    for i, (n, first) in enumerate(spans):
        inside[i, first : first + n] = 1
        along[i, first : first + n] = np.linspace(-1, 1, n)
    return inside, np.stack([np.ones_like(along), along, along**2], -1)
