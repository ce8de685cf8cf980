"""Confidence intervals for paired measurements: the same prompts and seeds under two conditions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from kinema.evaluation.oracle import Figure, share_interval

_RESAMPLES = 4000
_Floats = NDArray[np.float64]


def paired_difference(generated: Sequence[float], reference: Sequence[float], seed: int = 0) -> Figure:
    """``mean(generated) - mean(reference)`` with its 95 % interval."""
    return _bootstrap(np.subtract, generated, reference, seed)


def median(values: Sequence[float], seed: int = 0) -> Figure:
    """The median (as ``Figure.mean``) with its 95 % percentile bootstrap interval.

    The interval of a single value is infinite. Raises ValueError for no values or a NaN.
    """
    known_N = _known(values)
    centre = float(np.median(known_N))
    if len(known_N) == 1:
        return Figure(centre, -math.inf, math.inf, 1)
    resampled = known_N[np.random.default_rng(seed).integers(len(known_N), size=(_RESAMPLES, len(known_N)))]
    low, high = np.quantile(np.median(resampled, axis=1), (0.025, 0.975), method="nearest")
    return Figure(centre, float(low), float(high), len(known_N))


def paired_median_ratio(generated: Sequence[float], reference: Sequence[float], seed: int = 0) -> Figure:
    """The median of the pairs' ratios ``generated / reference`` with its 95 % interval, as of `median`.

    Unlike a ratio of means it gives every pair the same weight, and a few extreme pairs none. The ratio of a pair whose
    reference is zero is infinite, or 1 if both are zero.
    """
    above_N, below_N = _pairs(generated, reference)
    return median(_ratio(above_N, below_N).tolist(), seed)


def win_rate(first: Sequence[float], second: Sequence[float]) -> Figure:
    """Share of pairs in which ``first`` is lower, ties counting half, with Wilson's 95 % interval.

    The interval takes every pair for a win or a loss; ties vary less, so with them it is wider than necessary. Raises
    ValueError for no pairs or a NaN.
    """
    first_N, second_N = _pairs(first, second)
    wins = (first_N < second_N) + 0.5 * (first_N == second_N)
    return share_interval(float(wins.mean()), len(wins))


def _pairs(first: Sequence[float], second: Sequence[float]) -> tuple[_Floats, _Floats]:
    if len(first) != len(second):
        raise ValueError(f"{len(first)} measurements cannot be paired with {len(second)}")
    return _known(first), _known(second)


def _known(values: Sequence[float]) -> _Floats:
    known_N = np.asarray(values, np.float64)
    if not len(known_N):
        raise ValueError("a confidence interval requires at least one measurement")
    if np.isnan(known_N).any():
        raise ValueError(f"{np.isnan(known_N).sum()} of {len(known_N)} measurements are NaN")
    return known_N


def _ratio(above: _Floats, below: _Floats) -> _Floats:
    safe = np.where(below == 0, 1.0, below)
    return np.where(below == 0, np.where(above == 0, 1.0, np.inf), above / safe)


def _bootstrap(
    statistic: Callable[[_Floats, _Floats], _Floats], generated: Sequence[float], reference: Sequence[float], seed: int
) -> Figure:
    """Percentile bootstrap (Efron 1979) that resamples prompts, keeping pairs together."""
    pairs = np.stack([np.asarray(generated, np.float64), np.asarray(reference, np.float64)], axis=1)
    if not len(pairs):
        raise ValueError("a confidence interval requires at least one pair")
    resampled = np.random.default_rng(seed).integers(len(pairs), size=(_RESAMPLES, len(pairs)))
    means = pairs[resampled].mean(axis=1)
    centre = statistic(pairs[:, 0].mean(keepdims=True), pairs[:, 1].mean(keepdims=True))
    low, high = np.quantile(statistic(means[:, 0], means[:, 1]), (0.025, 0.975), method="nearest")
    return Figure(float(centre[0]), float(low), float(high), len(pairs))
