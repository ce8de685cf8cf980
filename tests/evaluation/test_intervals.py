from __future__ import annotations

import numpy as np
import pytest

from kinema.evaluation.intervals import paired_difference, paired_ratio


def test_equal_measurements_have_a_ratio_of_one_and_no_width() -> None:
    values = [0.1, 0.7, 2.0]
    figure = paired_ratio(values, values)
    assert (figure.mean, figure.low, figure.high, figure.count) == (1, 1, 1, 3)


def test_the_ratio_of_means_is_robust_to_one_still_clip() -> None:
    assert paired_ratio([1.0, 1.0], [2.0, 1e-9]).mean == pytest.approx(1, rel=1e-6)


def test_pairs_stay_together_in_resampling() -> None:
    reference = np.random.default_rng(0).uniform(0.01, 100, 40)
    figure = paired_ratio(3 * reference, reference)
    assert (figure.low, figure.high) == (pytest.approx(3), pytest.approx(3))


def test_a_zero_reference_gives_infinity_or_one_and_never_nan() -> None:
    assert paired_ratio([1.0], [0.0]).mean == np.inf
    assert paired_ratio([0.0], [0.0]).mean == 1


def test_the_interval_of_a_difference_is_that_of_the_paired_t_statistic() -> None:
    rng = np.random.default_rng(1)
    shared, noise = rng.normal(0, 50, 400), rng.normal(0.3, 1, 400)
    figure = paired_difference(shared + noise, shared)
    half = 1.96 * noise.std(ddof=1) / 20
    assert figure.low == pytest.approx(noise.mean() - half, abs=0.01)
    assert figure.high == pytest.approx(noise.mean() + half, abs=0.01)


def test_no_measurements_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        paired_ratio([], [])
