"""Weightings against their formulas, sampled levels against their distributions."""

from __future__ import annotations

import math

import pytest
import torch

from kinema.diffusion.losses import (
    WEIGHTINGS,
    draw_levels,
    edm_lognormal_levels,
    logit_normal_levels,
    min_snr,
    quantiles,
    sigmoid,
    snr,
    truncated_snr,
    uniform_levels,
)
from kinema.diffusion.schedules import CosineLogSNR, EDMSigmas, RectifiedFlow, variance_preserving
from kinema.schema import BadRequest

LOG_SNR = torch.tensor([-4.0, 0.0, 1.0, 5.0], dtype=torch.float64)
LEVEL = variance_preserving(LOG_SNR)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_weightings_match_their_formulas():
    ratio = LEVEL.alpha**2 / LEVEL.sigma**2
    torch.testing.assert_close(snr(LEVEL), ratio)
    torch.testing.assert_close(truncated_snr(LEVEL), ratio.clamp_min(1))
    torch.testing.assert_close(min_snr(5.0)(LEVEL), ratio.clamp_max(5))
    torch.testing.assert_close(sigmoid(-3.0)(LEVEL), ratio * torch.sigmoid(-3 - LOG_SNR))


def test_sigmoid_weight_stays_finite_at_the_clean_end():
    level = variance_preserving(torch.tensor([60.0]))
    assert float(sigmoid(2.0)(level)) == pytest.approx(math.exp(2.0))


def test_weightings_by_name_are_the_functions():
    assert WEIGHTINGS["uniform"]() is None
    torch.testing.assert_close(WEIGHTINGS["min-snr"](gamma=2.0)(LEVEL), min_snr(2.0)(LEVEL))
    assert WEIGHTINGS["snr"]() is snr
    assert WEIGHTINGS["truncated-snr"]() is truncated_snr
    torch.testing.assert_close(WEIGHTINGS["sigmoid"](bias=1.0)(LEVEL), sigmoid(1.0)(LEVEL))


@pytest.mark.parametrize("name", ["uniform", "logit-normal", "edm-lognormal"])
@pytest.mark.parametrize("stratified", [False, True])
def test_same_generator_state_gives_the_same_levels(name, stratified):
    draw = draw_levels(name, stratified=stratified)
    first, second = (draw(CosineLogSNR(), 16, generator(7)) for _ in range(2))
    assert torch.equal(first.alpha, second.alpha)
    assert not torch.equal(first.alpha, draw(CosineLogSNR(), 16, generator(8)).alpha)
    assert len(first) == 16


def test_an_unknown_distribution_is_rejected():
    with pytest.raises(BadRequest, match="uniform, logit-normal"):
        draw_levels("gaussian")


def test_stratified_quantiles_have_one_per_stratum_in_random_order():
    u = quantiles(32, generator(), stratified=True)
    assert sorted((u * 32).long().tolist()) == list(range(32))
    assert (u * 32).long().tolist() != list(range(32))


def test_uniform_levels_have_uniform_times():
    time = CosineLogSNR().time(uniform_levels(CosineLogSNR(), 20_000, generator()).log_snr).sort().values
    assert float((time - torch.linspace(0, 1, 20_000)).abs().max()) < 0.015


def test_logit_normal_levels_have_the_requested_mean_and_std():
    schedule = RectifiedFlow()
    level = logit_normal_levels(schedule, 20_000, generator(), mean=0.5, std=0.8)
    logit = torch.logit(schedule.time(level.log_snr))
    assert float(logit.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(logit.std()) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("schedule", [EDMSigmas(), CosineLogSNR(), RectifiedFlow()], ids=repr)
def test_edm_levels_are_lognormal_in_every_scaling(schedule):
    level = edm_lognormal_levels(schedule, 4_000, generator(), p_mean=0.7, p_std=1.6, stratified=True)
    log_ratio = (level.sigma / level.alpha).log()
    assert float(log_ratio.mean()) == pytest.approx(0.7, abs=0.01)
    assert float(log_ratio.std()) == pytest.approx(1.6, abs=0.01)
