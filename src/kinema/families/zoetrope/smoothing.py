"""Smooth poses over time, and interpolate them through frames in which the object is lost.

Playroom motion is piecewise quadratic: linear, decelerating or ballistic; a bounce starts a new piece. Plain temporal
smoothing rounds a bounce off by several pixels. Here every segment of ``LENGTHS`` frames that contains a frame proposes
the value of its quadratic fit (Savitzky & Golay 1964, at every position of the window), weighted by fit and length; the
unsmoothed value is a proposal too. A segment across a bounce fits badly and gets no weight (as in the stencils of ENO
schemes, Harten et al. 1987).

Before that, frames without the object are filled in by a quadratic fit to nearby frames (local regression, Cleveland
1979). Size and opacity change linearly, so they are fitted with a least-absolute-deviations line: a few outliers do not
bend it, unless they make up a quarter of the clip at its end.

Letters: B clips, T frames, W segments.
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
"""Segment lengths in frames; three frames always fit exactly."""
_LENGTH_LOG_ODDS = 2.0
"""Log-odds of a segment over one of half its length with the same fit."""
_MISFIT_LOG_ODDS = 3.0
"""Log-odds that a segment loses per unit of misfit (in squared tolerances) above 1."""
_RIDGE = 1e-4
_FILL_STD = 1.5
"""Standard deviation, in frames, of the Gaussian weights for filling gaps. Three lost frames of an orbit of 18 pixels
are off by at most 1.3 pixels, or 4 at the end of a clip."""
_ITERATIONS, _MIN_DIFFERENCE = 12, 1e-3
"""Iterations of reweighting, and the fraction of a line's scale below which a difference counts as zero."""


def smooth(value_BT: Tensor, confidence_BT: Tensor, tolerance: float) -> Tensor:
    """Smooth values, removing jitter of up to ``tolerance`` (root mean square); ``confidence`` weights the frames."""
    member_WT, basis_WT3 = (torch.tensor(table).to(value_BT) for table in _segments(value_BT.shape[1]))
    if not len(member_WT):
        return value_BT
    weight_BWT = member_WT * confidence_BT.clamp(min=1e-3)[:, None]
    weighted_BWT3 = weight_BWT[..., None] * basis_WT3
    gram_BW33 = torch.einsum("bwti,wtj->bwij", weighted_BWT3, basis_WT3)
    ridge = _RIDGE * torch.eye(3, dtype=value_BT.dtype, device=value_BT.device)
    # Relative to the mean, so that the ridge pulls towards it and not towards 0.
    mean_BW1 = ((weight_BWT * value_BT[:, None]).sum(-1) / weight_BWT.sum(-1))[..., None]
    off_BWT = value_BT[:, None] - mean_BW1
    moment_BW3 = torch.einsum("bwti,bwt->bwi", weighted_BWT3, off_BWT)
    scale_BW11 = weight_BWT.sum(-1)[..., None, None]
    # Unchecked, because a check would synchronise the GPU: the ridge guarantees a solution for finite values.
    fit_BW3 = torch.linalg.solve_ex(gram_BW33 / scale_BW11 + ridge, moment_BW3 / scale_BW11[..., 0]).result
    proposal_BWT = mean_BW1 + torch.einsum("bwi,wti->bwt", fit_BW3, basis_WT3)
    error_BWT = proposal_BWT.detach() - value_BT.detach()[:, None]
    share_BWT = _segment_weights(error_BWT, weight_BWT.detach(), member_WT, tolerance)
    return (share_BWT[:, :-1] * proposal_BWT).sum(1) + share_BWT[:, -1] * value_BT


def _segment_weights(error_BWT: Tensor, weight_BWT: Tensor, member_WT: Tensor, tolerance: float) -> Tensor:
    """Weight of each segment's proposal for each frame, and last of the unsmoothed value, B×(W+1)×T."""
    length_W = member_WT.sum(1)
    square_BW = (weight_BWT * error_BWT.square()).sum(-1) / weight_BWT.sum(-1)
    misfit_BW = square_BW * (length_W / (length_W - 3)) / tolerance**2  # three parameters are fitted
    log_odds_BW = _LENGTH_LOG_ODDS * torch.log2(length_W / 3) - _MISFIT_LOG_ODDS * (misfit_BW - 1).clamp(min=0)
    log_odds_BWT = log_odds_BW[..., None].masked_fill(member_WT == 0, -math.inf)
    return torch.cat([log_odds_BWT, torch.zeros_like(log_odds_BWT[:, :1])], 1).softmax(1)


def fill_gaps(value_BT: Tensor, confidence_BT: Tensor) -> Tensor:
    """Replace values of low ``confidence`` (0 to 1) by a local fit to the confident frames nearby."""
    t_T = torch.arange(value_BT.shape[1], dtype=value_BT.dtype, device=value_BT.device)
    offset_TT = t_T - t_T[:, None]  # of the second frame, relative to the first
    basis_TT3 = torch.stack([torch.ones_like(offset_TT), offset_TT, offset_TT.square()], -1)
    weight_BTT = confidence_BT[:, None].square() * torch.exp(-0.5 * (offset_TT / _FILL_STD).square()) + 1e-12
    weight_BTT = weight_BTT / weight_BTT.sum(-1, keepdim=True)
    mean_BT = (weight_BTT * value_BT[:, None]).sum(-1)
    weighted_BTT3 = weight_BTT[..., None] * basis_TT3
    gram_BT33 = torch.einsum("btsi,tsj->btij", weighted_BTT3, basis_TT3)
    ridge = _RIDGE * torch.eye(3, dtype=value_BT.dtype, device=value_BT.device)
    moment_BT3 = torch.einsum("btsi,bts->bti", weighted_BTT3, value_BT[:, None] - mean_BT[..., None])
    estimate_BT = mean_BT + torch.linalg.solve_ex(gram_BT33 + ridge, moment_BT3).result[..., 0]
    unsure_BT = confidence_BT < confidence_BT.amax(1, keepdim=True)
    low_B1, high_B1 = (  # clamp to the range of the confident frames
        value_BT.masked_fill(unsure_BT, sign * math.inf).mul(sign).amin(1, True).mul(sign) for sign in (1, -1)
    )
    return torch.lerp(estimate_BT.clamp(low_B1, high_B1), value_BT, confidence_BT)


def least_absolute_line(value_BT: Tensor, confidence_BT: Tensor) -> Tensor:
    """Fit a least-absolute-deviations line over the clip by iteratively reweighted least squares (IRLS).

    The last iterations use Cauchy weights, so that the gradient reaches every frame near the line and not only the two
    that it passes through.
    """
    t_T = torch.linspace(-1, 1, value_BT.shape[1], dtype=value_BT.dtype, device=value_BT.device)
    weight_BT = confidence_BT = confidence_BT.clamp(min=1e-3)
    min_difference = _MIN_DIFFERENCE * value_BT.detach().abs().mean(1, keepdim=True).clamp(min=1e-6)
    for i in range(_ITERATIONS):
        share_BT = weight_BT / weight_BT.sum(1, keepdim=True)
        mean_B1, centre_B1 = ((share_BT * x).sum(1, keepdim=True) for x in (value_BT, t_T))
        along_BT = t_T - centre_B1
        slope_B1 = (share_BT * along_BT * value_BT).sum(1, keepdim=True)
        slope_B1 = slope_B1 / (share_BT * along_BT.square()).sum(1, keepdim=True).clamp(min=_RIDGE)
        estimate_BT = mean_B1 + slope_B1 * along_BT
        off_BT = (value_BT - estimate_BT).detach().abs()
        if i + 2 < _ITERATIONS:
            weight_BT = confidence_BT / torch.maximum(off_BT, min_difference)
        else:
            scale_B1 = 2 * off_BT.median(1, keepdim=True).values + min_difference
            weight_BT = confidence_BT / (1 + (off_BT / scale_B1).square())
    return estimate_BT


@cache
def _segments(frames: int) -> tuple[Floats, Floats]:
    """Return the frames in each segment, W×T, and its basis 1, s, s², W×T×3, with s from -1 to 1."""
    spans = [(n, first) for n in LENGTHS if n <= frames for first in range(frames - n + 1)]
    member, along = np.zeros((2, len(spans), frames))
    for i, (n, first) in enumerate(spans):
        member[i, first : first + n] = 1
        along[i, first : first + n] = np.linspace(-1, 1, n)
    return member, np.stack([np.ones_like(along), along, along**2], -1)
