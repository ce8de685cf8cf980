"""Parameterisations: round trips, scale covariance and losses."""

from __future__ import annotations

import math

import pytest
import torch

from kinema.diffusion.losses import min_snr, snr, truncated_snr
from kinema.diffusion.parameterise import EDM, EPS, FLOW, X0, V, eps_from_x0
from kinema.diffusion.schedules import NoiseLevel, flow, variance_exploding, variance_preserving
from kinema.schema import BadRequest

ALL = {"eps": EPS, "v": V, "x0": X0, "flow": FLOW, "edm": EDM(0.5), "edm-1": EDM(1.0)}
FORMS = [variance_preserving, variance_exploding, flow]
LOG_SNR = torch.tensor([-6.0, -0.5, 3.0], dtype=torch.float64)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 3, 2, 4, 5, 4, generator=generator, dtype=torch.float64).unbind(0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ALL)
def test_the_target_decodes_to_x0(name, form, data):
    x0, eps, _ = data
    level = form(LOG_SNR)
    z = level.add_noise(x0, eps)
    found = ALL[name].x0(ALL[name].target(x0, eps, level), z, level)
    torch.testing.assert_close(found, x0, atol=1e-11, rtol=0)
    torch.testing.assert_close(ALL[name].eps_from_x0(found, z, level), eps, atol=1e-10, rtol=0)


def test_v_round_trips_as_alpha_z_minus_sigma_v_and_sigma_z_plus_alpha_v(data):
    x0, eps, _ = data
    level = variance_preserving(LOG_SNR)
    alpha, sigma = level.like(x0)
    z = level.add_noise(x0, eps)
    v = V.target(x0, eps, level)
    torch.testing.assert_close(v, alpha * eps - sigma * x0)
    torch.testing.assert_close(V.x0(v, z, level), alpha * z - sigma * v)
    torch.testing.assert_close(V.eps_from_x0(alpha * z - sigma * v, z, level), sigma * z + alpha * v)


@pytest.mark.parametrize("name", ALL)
def test_the_common_scale_of_a_level_changes_nothing(name, data):
    """(k alpha, k sigma) with k z: the same network input, target and x0."""
    x0, eps, z = data
    here, scale = variance_preserving(LOG_SNR), 3.7
    there = NoiseLevel(scale * here.alpha, scale * here.sigma)
    p = ALL[name]
    torch.testing.assert_close(p.x0(eps, scale * z, there), p.x0(eps, z, here))
    torch.testing.assert_close(p.target(x0, eps, there), p.target(x0, eps, here))
    torch.testing.assert_close(p.scalings(there)[2] * scale, p.scalings(here)[2])


@pytest.mark.parametrize("name", ["v", "x0", "flow", "edm"])
def test_both_ends_of_a_flow_are_finite(name, data):
    x0, eps, _ = (item[:2] for item in data)
    level = NoiseLevel(torch.tensor([0.0, 1.0]).double(), torch.tensor([1.0, 0.0]).double())
    z = level.add_noise(x0, eps)
    p = ALL[name]
    target = p.target(x0, eps, level)
    assert bool(target.isfinite().all())
    torch.testing.assert_close(p.x0(target, z, level), x0)
    assert bool((eps_from_x0(x0, z, level)[1] == 0).all())


def test_eps_prediction_rejects_pure_noise():
    with pytest.raises(BadRequest, match="alpha 0"):
        EPS.scalings(NoiseLevel(torch.zeros(1), torch.ones(1)))


@pytest.mark.parametrize("name", ["v", "eps", "edm"])
def test_network_input_and_target_have_unit_variance(name):
    """EDM's requirement on c_in and c_out, for data of the assumed standard deviation."""
    std = 0.5 if name == "edm" else 1.0
    generator = torch.Generator().manual_seed(1)
    x0, eps = torch.randn(2, 3, 1, 1, 200, 500, generator=generator, dtype=torch.float64)
    x0 = x0 * std
    level = variance_exploding(LOG_SNR)
    p = ALL[name]
    c_in = p.scalings(level)[2].reshape(-1, 1, 1, 1, 1)
    for seen in (c_in * level.add_noise(x0, eps), p.target(x0, eps, level)):
        torch.testing.assert_close(seen.flatten(1).std(1), torch.ones(3).double(), atol=0.01, rtol=0)


def test_edm_scalings_are_table_1():
    sigma, data = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64), 0.5
    c_skip, c_out, c_in = EDM(data).scalings(NoiseLevel(torch.ones(3).double(), sigma))
    torch.testing.assert_close(c_skip, data**2 / (sigma**2 + data**2))
    torch.testing.assert_close(c_out, sigma * data / (sigma**2 + data**2).sqrt())
    torch.testing.assert_close(c_in, 1 / (sigma**2 + data**2).sqrt())


def test_v_on_exploding_levels_is_the_scaling_of_svd():
    sigma = torch.tensor([0.1, 1.0, 300.0], dtype=torch.float64)
    c_skip, c_out, c_in = V.scalings(NoiseLevel(torch.ones(3).double(), sigma))
    torch.testing.assert_close(c_skip, 1 / (sigma**2 + 1))
    torch.testing.assert_close(c_out, -sigma / (sigma**2 + 1).sqrt())
    torch.testing.assert_close(c_in, 1 / (sigma**2 + 1).sqrt())


def test_a_denoiser_scales_calls_the_network_and_decodes(data):
    _, _, z = data
    level = variance_preserving(LOG_SNR)
    c_skip, c_out, c_in = (c.reshape(-1, 1, 1, 1, 1) for c in V.scalings(level))
    found = V.denoiser(lambda x, _: x.tanh())(z, level)
    torch.testing.assert_close(found, c_skip * z + c_out * (c_in * z).tanh())


@pytest.mark.parametrize("weighting", [snr, truncated_snr, min_snr(5.0)])
@pytest.mark.parametrize("name", ALL)
def test_weighted_loss_is_the_weight_times_the_x0_error(name, weighting, data):
    x0, eps, output = data
    level = variance_preserving(LOG_SNR)
    p = ALL[name]
    found = p.x0(output, level.add_noise(x0, eps), level)
    expected = weighting(level) * (found - x0).square().flatten(1).mean(1)
    torch.testing.assert_close(p.loss(output, x0, eps, level, weighting), expected)


def test_snr_weighting_of_eps_prediction_is_the_unweighted_loss(data):
    x0, eps, output = data
    level = variance_preserving(LOG_SNR)
    plain = (output - eps).square().flatten(1).mean(1)
    torch.testing.assert_close(EPS.loss(output, x0, eps, level), plain)
    torch.testing.assert_close(EPS.loss(output, x0, eps, level, snr), plain)


def test_masked_loss_is_the_mean_over_the_mask(data):
    x0, eps, output = data
    level = variance_preserving(LOG_SNR)
    mask = torch.zeros(3, 1, 4, 1, 1)
    mask[:, :, 1:3] = 1
    expected = (output - eps)[:, :, 1:3].square().flatten(1).mean(1)
    torch.testing.assert_close(EPS.loss(output, x0, eps, level, mask=mask), expected)


def test_the_best_constant_prediction_has_zero_loss(data):
    x0, eps, _ = data
    level = variance_preserving(LOG_SNR)
    for p in ALL.values():
        assert float(p.loss(p.target(x0, eps, level), x0, eps, level, snr).max()) == pytest.approx(0, abs=1e-20)
        assert math.isfinite(float(p.loss(torch.zeros_like(x0), x0, eps, level, snr).max()))


# ------------------------------------------------------------------------------ a level per frame

LOG_SNR_BT = torch.tensor([[-6.0, -0.5, 3.0, 1.0], [2.0, 0.0, -1.0, 5.0], [0.0, 0.1, 0.2, -4.0]], dtype=torch.float64)


def of_frame(level, t):
    return NoiseLevel(level.alpha[:, t], level.sigma[:, t])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ALL)
def test_a_level_per_frame_equals_separate_frames(name, form, data):
    x0, eps, output = data
    level, p = form(LOG_SNR_BT), ALL[name]
    z = level.add_noise(x0, eps)
    denoise = p.denoiser(lambda z, _: z.tanh())
    results = (z, p.x0(output, z, level), p.target(x0, eps, level), p.eps_from_x0(x0, z, level), denoise(z, level))
    for t in range(4):
        own, cut = of_frame(level, t), slice(t, t + 1)
        z_t, x0_t, eps_t = own.add_noise(x0[:, :, cut], eps[:, :, cut]), x0[:, :, cut], eps[:, :, cut]
        ends = p.x0(output[:, :, cut], z_t, own), p.target(x0_t, eps_t, own), p.eps_from_x0(x0_t, z_t, own)
        for found, expected in zip(results, (z_t, *ends, denoise(z_t, own)), strict=True):
            torch.testing.assert_close(found[:, :, cut], expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("weighting", [None, snr, min_snr(5.0)])
@pytest.mark.parametrize("name", ALL)
def test_the_loss_with_a_level_per_frame_is_the_mean_over_frames(name, weighting, data):
    x0, eps, output = data
    level, p = variance_preserving(LOG_SNR_BT), ALL[name]
    cuts = [(of_frame(level, t), slice(t, t + 1)) for t in range(4)]
    each = [p.loss(output[:, :, cut], x0[:, :, cut], eps[:, :, cut], own, weighting) for own, cut in cuts]
    torch.testing.assert_close(p.loss(output, x0, eps, level, weighting), torch.stack(each).mean(0))


@pytest.mark.parametrize("name", ["v", "flow", "edm", "edm-1", "eps"])
def test_a_frame_at_the_clean_level_is_returned_unchanged(name, data):
    """For any network output, except with x0-prediction, which returns the output itself (`CleanFrames`)."""
    _, output, z = data
    level = variance_preserving(LOG_SNR_BT)
    level = NoiseLevel(level.alpha.index_fill(1, torch.tensor([1]), 1), level.sigma.index_fill(1, torch.tensor([1]), 0))
    x0 = ALL[name].x0(output, z, level)
    assert bool(x0.isfinite().all())
    torch.testing.assert_close(x0[:, :, 1], z[:, :, 1])
