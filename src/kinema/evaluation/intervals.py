"""Intervals for paired measurements: the same prompts and seeds under two conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from kinema.evaluation.oracle import Figure

_DRAWS = 4000
_Floats = NDArray[np.float64]


def paired_ratio(made: Sequence[float], reference: Sequence[float], seed: int = 0) -> Figure:
    """``mean(made) / mean(reference)`` with its 95 % interval.

    The ratio of means, not the mean of ratios: one still clip, whose measure is near zero, cannot
    carry the figure. Where the reference is zero the ratio is infinite, or 1 if both are.
    """
    return _bootstrap(_ratio, made, reference, seed)


def paired_difference(made: Sequence[float], reference: Sequence[float], seed: int = 0) -> Figure:
    """``mean(made) - mean(reference)`` with its 95 % interval."""
    return _bootstrap(np.subtract, made, reference, seed)


def _ratio(above: _Floats, below: _Floats) -> _Floats:
    safe = np.where(below == 0, 1.0, below)
    return np.where(below == 0, np.where(above == 0, 1.0, np.inf), above / safe)


def _bootstrap(
    statistic: Callable[[_Floats, _Floats], _Floats], made: Sequence[float], reference: Sequence[float], seed: int
) -> Figure:
    """Percentile bootstrap (Efron 1979) over the pairs: prompts are drawn, both their measures go along."""
    pairs = np.stack([np.asarray(made, np.float64), np.asarray(reference, np.float64)], axis=1)
    if not len(pairs):
        raise ValueError("an interval needs at least one pair")
    drawn = np.random.default_rng(seed).integers(len(pairs), size=(_DRAWS, len(pairs)))
    means = pairs[drawn].mean(axis=1)
    centre = statistic(pairs[:, 0].mean(keepdims=True), pairs[:, 1].mean(keepdims=True))
    low, high = np.quantile(statistic(means[:, 0], means[:, 1]), (0.025, 0.975), method="nearest")
    return Figure(float(centre[0]), float(low), float(high), len(pairs))
