"""Distances of generated from real clips: what their intervals cover, against closed forms for Gaussians."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from kinema.evaluation.metrics import frechet_distance, kernel_distance
from kinema.schema import BadRequest

ROOT = Path(__file__).parents[1]
N, D = 48, 4


@pytest.fixture
def evidence(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.evidence.distances")


def normal(generator, shift=0.0, count=N):
    return torch.randn(count, D, generator=generator, dtype=torch.float64) + shift


def kernel_mean(a, b):
    """E (x·y / D + 1)³ for x ~ N(a, I) and y ~ N(b, I), with a and b the same in all D dimensions."""
    ab, aa, bb = D * a * b, D * a * a, D * b * b
    first, second = ab / D, (ab**2 + aa + bb + D) / D**2
    third = (ab**3 + 3 * ab * aa + 3 * ab * (bb + D + 2)) / D**3
    return 1 + 3 * first + 3 * second + third


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_interval_of_the_kernel_distance_covers_that_of_the_distributions(evidence, shift):
    generator = torch.Generator().manual_seed(0)
    true = kernel_mean(shift, shift) + kernel_mean(0, 0) - 2 * kernel_mean(shift, 0)
    found = [evidence.jackknife(kernel_distance, normal(generator, shift), normal(generator)) for _ in range(60)]
    deviation = torch.tensor([f.mean for f in found]).std().item()
    assert sum(f.mean for f in found) / 60 == pytest.approx(true, abs=3 * deviation / 60**0.5)
    assert sum(f.low <= true <= f.high for f in found) >= 54
    if shift:
        assert sum(f.high - f.mean for f in found) / 60 < 1.35 * 2.04 * deviation


def test_the_interval_of_the_frechet_distance_covers_its_expectation_at_this_size(evidence):
    generator = torch.Generator().manual_seed(1)
    found = [evidence.jackknife(frechet_distance, normal(generator, 0.5), normal(generator)) for _ in range(60)]
    expectation = sum(f.mean for f in found) / 60
    assert expectation > D * 0.25
    assert sum(f.low <= expectation <= f.high for f in found) >= 53
    deviation = torch.tensor([f.mean for f in found]).std().item()
    assert sum(f.high - f.mean for f in found) / 60 < 1.35 * 2.04 * deviation


def test_distances_state_sizes_and_those_of_real_from_real_clips(evidence):
    generator = torch.Generator().manual_seed(2)
    real, control = normal(generator, count=60), normal(generator)
    found = evidence.distances(normal(generator, 1.0), real, control)
    assert (found.size, found.reference, found.kvd.count) == (N, 60, N)
    assert found.real_kvd.low < 0 < found.real_kvd.high < found.kvd.low
    assert 0 < found.real_frechet.mean < found.frechet.low
    assert found.real_kvd.mean == pytest.approx(kernel_distance(control, real))
    assert found.real_frechet.mean == pytest.approx(frechet_distance(control, real))


def test_a_control_of_another_size_is_an_error(evidence):
    real = normal(torch.Generator().manual_seed(3))
    with pytest.raises(BadRequest, match="control has 47 clips and 48 were generated"):
        evidence.distances(real, real, real[1:])
    with pytest.raises(BadRequest, match="3 and 48 clips; expected at least 4"):
        evidence.jackknife(kernel_distance, real[:3], real)


def test_arms_that_share_prompts_are_compared_in_pairs(evidence):
    generator = torch.Generator().manual_seed(4)
    real, first = normal(generator), normal(generator, 1.0)
    assert [(f.mean, f.low, f.high) for f in evidence.differences(first, first, real)] == [(0, 0, 0)] * 2
    paired, _ = evidence.differences(first, first - 0.1, real)
    unrelated, _ = evidence.differences(first, normal(generator, 0.9), real)
    assert paired.low > 0
    assert paired.high - paired.low < 0.5 * (unrelated.high - unrelated.low)
    with pytest.raises(BadRequest, match="48 and 47 clips; expected pairs"):
        evidence.differences(first, first[1:], real)
