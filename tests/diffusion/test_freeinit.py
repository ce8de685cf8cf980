"""FreeInit: filters against closed forms and diffusers, the renewed noise, and the steps of each pass."""

from __future__ import annotations

import math

import pytest
import torch

from kinema.diffusion.freeinit import FreeInit, low_pass, mix_frequencies, steps_per_pass
from kinema.diffusion.noise import Noise
from kinema.diffusion.schedules import DiscreteBetas, EDMSigmas, RectifiedFlow
from kinema.schema import BadRequest

KINDS = ["butterworth", "gaussian", "ideal", "box"]
SHAPE = (8, 6, 10)
ONE = torch.ones(1, dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 6, 10), (5, 7, 4)])
def test_filters_match_their_closed_forms(shape):
    s, t = 0.3, 0.2
    filters = {kind: low_pass(kind, shape, (s, t), order=3) for kind in KINDS}
    for i in range(shape[0]):
        for j in range(shape[1]):
            for k in range(shape[2]):
                f, y, x = (2 * n / size - 1 for n, size in zip((i, j, k), shape, strict=True))
                d2 = (s / t * f) ** 2 + y**2 + x**2
                assert float(filters["butterworth"][i, j, k]) == pytest.approx(1 / (1 + (d2 / s**2) ** 3))
                assert float(filters["gaussian"][i, j, k]) == pytest.approx(math.exp(-d2 / (2 * s * s)))
                assert float(filters["ideal"][i, j, k]) == float(d2 <= 2 * s)


def test_the_box_is_centred_on_zero_frequency():
    box = low_pass("box", (8, 12, 16), (0.5, 0.25))
    assert box.sum() == 2 * 6 * 6
    assert bool((box[3:5, 3:9, 5:11] == 1).all())


@pytest.mark.parametrize("kind", ["butterworth", "gaussian", "ideal"])
@pytest.mark.parametrize("stop", [(0.25, 0.25), (0.5, 0.1), (0.0, 0.5)])
def test_filters_and_mixing_equal_diffusers(kind, stop):
    pytest.importorskip("diffusers")
    from diffusers.pipelines.free_init_utils import FreeInitMixin

    scheduler = FreeInitMixin()
    mask = scheduler._get_free_init_freq_filter((1, 4, *SHAPE), "cpu", kind, 4, *stop)
    filter_THW = low_pass(kind, SHAPE, stop)
    assert (filter_THW - mask[0, 0]).abs().max() <= 1e-6
    low, high = normal(1, 4, *SHAPE), normal(1, 4, *SHAPE, seed=1)
    expected = scheduler._apply_freq_filter(low, high, mask)
    assert (mix_frequencies(low, high, filter_THW.float()) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_frequency_of_0_passes_nothing(kind):
    assert not low_pass(kind, SHAPE, (0, 0.5)).any()
    assert not low_pass(kind, SHAPE, (0.5, 0)).any()


def test_a_mask_of_1_gives_the_low_input_and_0_the_high_input():
    low, high = normal(2, 3, *SHAPE), normal(2, 3, *SHAPE, seed=1)
    assert (mix_frequencies(low, high, torch.ones(SHAPE)) - low).abs().max() <= 1e-5
    assert torch.equal(mix_frequencies(low, high, torch.zeros(SHAPE)), high)


def test_low_frequencies_come_from_the_clip_and_high_ones_from_fresh_noise():
    """Frequencies that the ideal filter passes equal the noised clip's, the others the fresh noise's."""
    first, x0 = normal(1, 2, 8, 8, 8), 3 * normal(1, 2, 8, 8, 8, seed=1)
    betas = DiscreteBetas("linear", 0.00085, 0.012)
    renew = FreeInit(betas.level(ONE), "ideal", stop=(0.2, 0.2))
    noise = torch.fft.fftshift(torch.fft.fftn(renew(first, x0, Noise([4])), dim=(-3, -2, -1)), dim=(-3, -2, -1))
    alpha = math.sqrt(float(betas.alphas_cumprod[-1]))
    noised = alpha * x0 + math.sqrt(1 - alpha**2) * first
    passed = low_pass("ideal", (8, 8, 8), (0.2, 0.2)) > 0
    for expected, where in ((noised, passed), (Noise([4]).like(first), ~passed)):
        expected = torch.fft.fftshift(torch.fft.fftn(expected, dim=(-3, -2, -1)), dim=(-3, -2, -1))
        assert (noise - expected)[..., where].abs().max() <= 1e-4


def test_noise_has_unit_variance_for_any_scaling_of_the_schedule():
    """An EDM schedule's z has standard deviation 700, but FreeInit's noise is standard normal."""
    renew = FreeInit(EDMSigmas(sigma_max=700.0).level(ONE))
    noise = renew(normal(1, 4, 8, 16, 16), normal(1, 4, 8, 16, 16, seed=1), Noise([4]))
    assert float(noise.std()) == pytest.approx(1, abs=0.05)


def test_clips_of_a_batch_are_renewed_independently():
    renew = FreeInit(DiscreteBetas("linear", 0.00085, 0.012).level(ONE))
    first, x0 = normal(2, 4, *SHAPE), normal(2, 4, *SHAPE, seed=1)
    both = renew(first, x0, Noise([4, 5]))
    assert torch.allclose(both[1:], renew(first[1:], x0[1:], Noise([5])), atol=1e-6)


def test_a_schedule_that_ends_in_pure_noise_is_rejected():
    with pytest.raises(BadRequest, match="free_init has no effect"):
        FreeInit(RectifiedFlow().level(ONE))


def test_fast_passes_have_increasing_numbers_of_steps():
    assert steps_per_pass(3, 25, fast=False) == [25, 25, 25]
    assert steps_per_pass(3, 25, fast=True) == [8, 16, 25]
    assert steps_per_pass(5, 2, fast=True) == [1, 1, 1, 1, 2]
