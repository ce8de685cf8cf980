from __future__ import annotations

import numpy as np
import pytest

from kinema.evaluation.intervals import median, paired_difference, paired_median_ratio, win_rate
from kinema.evaluation.oracle import wilson


def test_equal_measurements_have_a_ratio_of_one_and_no_width() -> None:
    values = [0.1, 0.7, 2.0]
    figure = paired_median_ratio(values, values)
    assert (figure.mean, figure.low, figure.high, figure.count) == (1, 1, 1, 3)


def test_pairs_stay_together_in_resampling() -> None:
    reference = np.random.default_rng(0).uniform(0.01, 100, 40)
    figure = paired_median_ratio((3 * reference).tolist(), reference.tolist())
    assert (figure.low, figure.high) == (pytest.approx(3), pytest.approx(3))


def test_the_interval_of_a_difference_is_that_of_the_paired_t_statistic() -> None:
    rng = np.random.default_rng(1)
    shared, noise = rng.normal(0, 50, 400), rng.normal(0.3, 1, 400)
    figure = paired_difference(shared + noise, shared)
    half = 1.96 * noise.std(ddof=1) / 20
    assert figure.low == pytest.approx(noise.mean() - half, abs=0.01)
    assert figure.high == pytest.approx(noise.mean() + half, abs=0.01)


def test_no_measurements_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        paired_difference([], [])


def test_the_interval_of_a_median_is_that_of_its_order_statistics() -> None:
    values = np.random.default_rng(2).permutation(np.arange(1.0, 402.0))
    figure = median(values.tolist())
    # 401 distinct ranks: the binomial's 95 % interval is 201 ± 1.96 × √401 / 2 ranks.
    assert (figure.mean, figure.count) == (201, 401)
    assert figure.low == pytest.approx(201 - 19.6, abs=2)
    assert figure.high == pytest.approx(201 + 19.6, abs=2)


def test_the_interval_of_a_median_covers_the_true_median() -> None:
    rng = np.random.default_rng(3)
    found = [median(rng.exponential(size=40).tolist()) for _ in range(300)]
    covered = sum(f.low <= np.log(2) <= f.high for f in found)
    assert 0.91 < covered / 300 < 0.985


def test_a_median_ratio_ignores_a_few_extreme_pairs_and_keeps_pairs_together() -> None:
    reference = np.random.default_rng(4).uniform(0.01, 100, 41)
    generated = 3 * reference
    generated[:3] = 1e9
    figure = paired_median_ratio(generated.tolist(), reference.tolist())
    assert (figure.mean, figure.low, figure.high) == (pytest.approx(3), pytest.approx(3), pytest.approx(3))
    assert generated.mean() / reference.mean() > 1e5


def test_a_median_ratio_with_zeros_is_one_or_infinite_and_never_nan() -> None:
    assert paired_median_ratio([0.0, 0.0, 2.0], [0.0, 0.0, 1.0]).mean == 1
    assert paired_median_ratio([1.0, 1.0, 2.0], [0.0, 0.0, 1.0]).mean == np.inf
    assert paired_median_ratio([1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]).high == np.inf


def test_one_value_has_an_infinite_interval() -> None:
    figure = paired_median_ratio([3.0], [2.0])
    assert (figure.mean, figure.low, figure.high, figure.count) == (1.5, -np.inf, np.inf, 1)


def test_a_win_rate_counts_lower_values_and_half_of_the_ties() -> None:
    assert win_rate([1, 1, 1, 2], [2, 2, 1, 1]).mean == pytest.approx(2.5 / 4)
    assert win_rate([2, 2], [2, 2]).mean == 0.5
    assert win_rate([0.0], [-0.0]).mean == 0.5
    assert win_rate([1.0, -np.inf], [np.inf, 0.0]).mean == 1


def test_the_interval_of_a_win_rate_is_wilsons() -> None:
    wins = [True] * 7 + [False] * 3
    assert win_rate([0.0 if win else 2.0 for win in wins], [1.0] * 10) == wilson(wins)
    one = win_rate([0.0], [1.0])
    assert (one.mean, one.low, one.high) == (1, pytest.approx(1 / (1 + 1.959964**2)), 1)


def test_ties_do_not_narrow_the_interval_of_a_win_rate() -> None:
    assert win_rate([1.0] * 10, [1.0] * 10) == win_rate([0.0] * 5 + [2.0] * 5, [1.0] * 10)


@pytest.mark.parametrize("measure", [paired_median_ratio, win_rate])
def test_measurements_that_cannot_be_compared_are_an_error(measure) -> None:
    with pytest.raises(ValueError, match="at least one measurement"):
        measure([], [])
    with pytest.raises(ValueError, match="3 measurements cannot be paired with 1"):
        measure([1.0, 2.0, 3.0], [1.0])
    with pytest.raises(ValueError, match="1 of 2 measurements are NaN"):
        measure([1.0, np.nan], [1.0, 2.0])
