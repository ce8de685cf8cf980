"""Confidence intervals for paired measurements: the same prompts and seeds under two conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from kinema.evaluation.oracle import Figure

_RESAMPLES = 4000
_Floats = NDArray[np.float64]


def paired_ratio(generated: Sequence[float], reference: Sequence[float], seed: int = 0) -> Figure:
    """``mean(generated) / mean(reference)`` with its 95 % interval.

    A ratio of means rather than a mean of ratios, so that a still clip with a measure near zero does not dominate.
    If the reference is zero the ratio is infinite, or 1 if both are.
    """
    return _bootstrap(_ratio, generated, reference, seed)


def paired_difference(generated: Sequence[float], reference: Sequence[float], seed: int = 0) -> Figure:
    """``mean(generated) - mean(reference)`` with its 95 % interval."""
    return _bootstrap(np.subtract, generated, reference, seed)


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
