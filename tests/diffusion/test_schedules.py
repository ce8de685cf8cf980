"""Schedules: identities, inverses and closed forms."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinema.diffusion.schedules import (
    SPACINGS,
    CosineLogSNR,
    DiscreteBetas,
    EDMSigmas,
    NoiseLevel,
    RectifiedFlow,
    custom,
    edit_steps,
    flow,
    last_levels,
    spaced,
    variance_exploding,
    variance_preserving,
)
from kinema.schema import BadRequest

SCHEDULES = [
    CosineLogSNR(),
    CosineLogSNR(shift=1.5),
    DiscreteBetas("linear", 0.00085, 0.012),
    DiscreteBetas("scaled_linear", 0.00085, 0.02),
    EDMSigmas(),
    EDMSigmas(0.002, 700.0),
    RectifiedFlow(),
    RectifiedFlow(3.0),
]
unit = st.floats(0, 1, allow_subnormal=False)
log_snrs = st.floats(-18, 18)


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_cosine_log_snr_is_20_then_0_then_minus_20():
    log_snr = CosineLogSNR().level(f64(0, 0.5, 1)).log_snr
    torch.testing.assert_close(log_snr, f64(20, 0, -20), atol=1e-9, rtol=0)


def test_a_shift_multiplies_noise_over_signal_at_every_time():
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    plain, shifted = CosineLogSNR().level(t), CosineLogSNR(shift=3.0).level(t)
    torch.testing.assert_close(shifted.sigma / shifted.alpha, 3 * plain.sigma / plain.alpha)


@given(s=unit, gap=st.floats(1e-3, 1))
def test_variances_add_up_between_two_times(s, gap):
    """(alpha_t / alpha_s)² sigma_s² + sigma²_{t|s} = sigma_t², with sigma²_{t|s} = (1 - e^{λt - λs}) sigma_t²."""
    t = min(s + gap, 1.0)
    level = CosineLogSNR().level(f64(t, s))
    (alpha_t, alpha_s), (sigma_t, sigma_s), (lambda_t, lambda_s) = level.alpha, level.sigma, level.log_snr
    between = -torch.expm1(lambda_t - lambda_s) * sigma_t**2
    torch.testing.assert_close((alpha_t / alpha_s) ** 2 * sigma_s**2 + between, sigma_t**2, atol=1e-14, rtol=1e-12)


@given(log_snr=log_snrs)
def test_three_scalings_keep_their_norm_and_log_snr(log_snr):
    value = f64(log_snr)
    vp, ve, rf = variance_preserving(value), variance_exploding(value), flow(value)
    torch.testing.assert_close(vp.alpha**2 + vp.sigma**2, f64(1))
    torch.testing.assert_close(rf.alpha + rf.sigma, f64(1))
    assert ve.alpha == 1
    for level in (vp, ve, rf):
        torch.testing.assert_close(level.log_snr, value, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@given(t=st.floats(1e-4, 1 - 1e-4))
def test_time_inverts_level(schedule, t):
    torch.testing.assert_close(schedule.time(schedule.level(f64(t)).log_snr), f64(t), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@given(t=st.floats(1e-4, 1 - 1e-4))
def test_at_gives_the_level_of_a_log_snr_in_the_schedules_own_scaling(schedule, t):
    level = schedule.level(f64(t))
    again = schedule.at(level.log_snr)
    torch.testing.assert_close(again.alpha, level.alpha, atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(again.sigma, level.sigma, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_times_beyond_the_schedule_are_its_ends(schedule):
    torch.testing.assert_close(schedule.time(f64(60.0, -60.0)), f64(0, 1), atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("kind", "end", "expected"),
    [("linear", 0.012, 0.001579), ("scaled_linear", 0.012, 0.004660), ("scaled_linear", 0.020, 0.000230)],
)
def test_last_alphas_cumprod_is_the_published_one(kind, end, expected):
    assert float(DiscreteBetas(kind, 0.00085, end).alphas_cumprod[999]) == pytest.approx(expected, abs=5e-7)


@given(step=st.integers(0, 999))
def test_integer_timesteps_have_the_discrete_betas_levels(step):
    betas = DiscreteBetas("scaled_linear", 0.00085, 0.012)
    level = betas.level(f64(step / 999))
    torch.testing.assert_close(level.alpha**2, betas.alphas_cumprod[step : step + 1], rtol=1e-9, atol=0)
    torch.testing.assert_close(betas.timestep(level.log_snr), f64(step), atol=1e-6, rtol=0)


def test_timesteps_between_steps_interpolate_log_snr():
    betas = DiscreteBetas("linear", 0.0001, 0.02)
    ends = torch.logit(betas.alphas_cumprod[[10, 11]])
    torch.testing.assert_close(betas.timestep(ends.mean().reshape(1)), f64(10.5))


def test_edm_sigmas_match_the_closed_form():
    levels = spaced(EDMSigmas(0.002, 80.0), 18, "karras")
    i = torch.arange(18, dtype=torch.float64)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(levels.sigma[:-1], expected)
    assert levels.sigma[-1] == 0
    assert bool((levels.alpha == 1).all())


def test_karras_spacing_of_betas_runs_from_their_first_to_their_last_sigma():
    betas = DiscreteBetas("scaled_linear", 0.00085, 0.012)
    ratio = torch.exp(-spaced(betas, 10, "karras").log_snr[:-1] / 2)
    ends = ((1 - betas.alphas_cumprod) / betas.alphas_cumprod).sqrt()
    torch.testing.assert_close(ratio[[0, -1]], ends[[-1, 0]])
    bends = (ratio ** (1 / 7)).diff().diff()
    torch.testing.assert_close(bends, torch.zeros_like(bends), atol=1e-12, rtol=0)


def test_shifted_flow_is_the_published_formula():
    sigma = spaced(RectifiedFlow(3.0), 4).sigma
    torch.testing.assert_close(sigma, f64(1, 0.9, 0.75, 0.5, 0))


def test_rectified_flow_is_exactly_noise_at_1_and_clean_at_0():
    level = RectifiedFlow(2.0).level(f64(1, 0))
    assert level.alpha.tolist() == [0, 1]
    assert level.sigma.tolist() == [1, 0]
    assert bool(level.log_snr.isfinite().all())


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_spacings_fall_from_noise_to_exactly_clean(schedule, spacing):
    levels = spaced(schedule, 12, spacing)
    assert len(levels) == 13
    assert bool((levels.log_snr.diff() > 0).all())
    assert (levels.alpha[-1], levels.sigma[-1]) == (1, 0)
    if "leading" not in spacing:
        first = schedule.level(f64(1))
        torch.testing.assert_close(levels[0].alpha, first.alpha)
        torch.testing.assert_close(levels[0].sigma, first.sigma)


@pytest.mark.parametrize(("spacing", "first", "last"), [("leading", 961, 1), ("trailing", 999, 39)])
def test_leading_and_trailing_are_integer_timesteps(spacing, first, last):
    betas = DiscreteBetas("scaled_linear", 0.00085, 0.012)
    steps = betas.timestep(spaced(betas, 25, spacing).log_snr[:-1])
    torch.testing.assert_close(steps, steps.round(), atol=1e-6, rtol=0)
    assert (round(float(steps[0])), round(float(steps[-1]))) == (first, last)


def test_log_snr_spacing_is_even():
    log_snr = spaced(CosineLogSNR(), 9, "log-snr").log_snr[:-1]
    torch.testing.assert_close(log_snr, torch.linspace(-20, 20, 9, dtype=torch.float64), atol=1e-8, rtol=0)


def test_custom_sigmas_are_ratios_in_the_schedules_scaling():
    levels = custom(DiscreteBetas("linear", 0.00085, 0.012), sigmas=[10.0, 1.0, 0.0])
    torch.testing.assert_close((levels.sigma / levels.alpha), f64(10, 1, 0))
    torch.testing.assert_close(levels.alpha**2 + levels.sigma**2, f64(1, 1, 1))
    ve = custom(EDMSigmas(), sigmas=[700.0, 0.5, 0.0])
    torch.testing.assert_close(ve.sigma, f64(700, 0.5, 0))
    torch.testing.assert_close(custom(RectifiedFlow(), sigmas=[1.0, 0.25, 0.0]).alpha, f64(0, 0.75, 1))
    torch.testing.assert_close(custom(CosineLogSNR(), log_snrs=[-6.0, 2.0]).log_snr[:2], f64(-6, 2))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sigmas": [1.0, 2.0]},
        {"sigmas": [1.0]},
        {"sigmas": [1.0, 0.0], "log_snrs": [1.0]},
        {"log_snrs": [2.0, 1.0]},
    ],
)
def test_invalid_custom_levels_are_rejected(options):
    with pytest.raises(BadRequest):
        custom(EDMSigmas(), **options)


def test_invalid_spacing_steps_and_betas_are_rejected():
    with pytest.raises(BadRequest, match="spacing"):
        spaced(EDMSigmas(), 4, "quadratic")
    with pytest.raises(BadRequest, match="steps"):
        spaced(EDMSigmas(), 0)
    with pytest.raises(BadRequest, match="betas"):
        DiscreteBetas("cosine", 0.1, 0.2)
    with pytest.raises(BadRequest, match="timesteps, with"):
        spaced(DiscreteBetas("linear", 0.1, 0.2, count=10), 11, "trailing")


def test_levels_support_indexing_batching_and_shaping():
    levels = spaced(RectifiedFlow(), 4)
    assert len(levels[-1]) == 1
    assert levels[-1].sigma == 0
    assert len(levels[1:3]) == 2
    z = torch.zeros(3, 2, 4, 5, 6)
    alpha, sigma = levels[1].batch(3).like(z)
    assert alpha.shape == sigma.shape == (3, 1, 1, 1, 1)
    assert alpha.dtype == z.dtype
    x0, eps = torch.randn(2, *z.shape)
    torch.testing.assert_close(levels[1].batch(3).add_noise(x0, eps), 0.25 * x0 + 0.75 * eps)


def test_prior_std_is_that_of_the_noisiest_level():
    assert CosineLogSNR().prior_std == DiscreteBetas("linear", 0.1, 0.2).prior_std == RectifiedFlow().prior_std == 1
    assert EDMSigmas(0.002, 700.0).prior_std == pytest.approx(math.sqrt(1 + 700**2))
    assert EDMSigmas(0.002, 700.0, data_std=0).prior_std == 700


def test_levels_keep_float32_for_training():
    t = torch.rand(5)
    for schedule in SCHEDULES:
        level = schedule.level(t)
        assert isinstance(level, NoiseLevel)
        assert level.alpha.dtype == level.sigma.dtype == schedule.time(level.log_snr).dtype == torch.float32


# ------------------------------------------------------------------------------------------ edits


@pytest.mark.parametrize(
    ("steps", "strength", "taken"),
    [
        (25, 0.75, 18),  # 18.75
        (5, 0.9, 4),  # 4.5
        (10, 0.7, 7),
        (50, 0.58, 28),  # 28.999999999999996 in binary
        (10, 0.09, 0),
        (10, 0.0, 0),
        (10, 1.0, 10),
    ],
)
def test_an_edit_runs_its_share_of_the_steps_rounded_down(steps, strength, taken):
    assert edit_steps(steps, strength) == taken
    levels = spaced(RectifiedFlow(), steps)
    kept = last_levels(levels, strength)
    assert torch.equal(kept.sigma, levels.sigma[steps - taken :])
    assert kept.sigma[-1] == 0


def test_an_edit_runs_the_same_steps_as_diffusers():
    diffusers = pytest.importorskip("diffusers")
    steps_left = diffusers.AnimateDiffVideoToVideoPipeline.get_timesteps
    pipeline = SimpleNamespace(scheduler=SimpleNamespace(order=1))
    for steps in (1, 2, 3, 5, 7, 10, 20, 25, 30, 49, 50, 100):
        levels = spaced(RectifiedFlow(), steps)
        for strength in (percent / 100 for percent in range(101)):
            timesteps, count = steps_left(pipeline, steps, torch.arange(steps), strength, "cpu")
            assert len(timesteps) == count == edit_steps(steps, strength), (steps, strength)
            assert len(last_levels(levels, strength)) == count + 1


# ------------------------------------------------------------------------------ a level per frame

PER_FRAME = variance_preserving(torch.tensor([[-3.0, 0.0, 2.0]], dtype=torch.float64))


def test_a_level_per_frame_multiplies_each_frame_and_expands_to_a_batch():
    x0, eps = torch.ones(2, 4, 3, 2, 2), torch.full((2, 4, 3, 2, 2), 10.0)
    level = PER_FRAME.batch(2)
    assert level.log_snr.shape == (2, 3)
    assert [tuple(each.shape) for each in level.like(x0)] == [(2, 1, 3, 1, 1)] * 2
    noised = level.add_noise(x0, eps)
    for t in range(3):
        expected = float(PER_FRAME.alpha[0, t] + 10 * PER_FRAME.sigma[0, t])
        torch.testing.assert_close(noised[:, :, t], torch.full((2, 4, 2, 2), expected))


def test_a_level_per_frame_is_not_a_list_of_levels():
    for use in (len, lambda level: level[0], lambda level: level[:1], list):
        with pytest.raises(
            TypeError, match=r"a level per frame \(1×3\) was used as a list of levels; expected .* \[N\]"
        ):
            use(PER_FRAME)


def test_a_level_per_frame_for_another_number_of_frames_is_rejected():
    with pytest.raises(ValueError, match="for 3 frames"):
        PER_FRAME.like(torch.zeros(1, 4, 5, 2, 2))


# ---------------------------------------------------------------------------------------- respaced


@pytest.mark.parametrize("steps", [2, 3, 50, 100, 1000])
def test_respaced_steps_are_the_integer_timesteps_nearest_to_even_ones(steps):
    """IDDPM's space_timesteps of one section: both ends, and every ``999 / (steps - 1)`` rounded between."""
    betas = DiscreteBetas("linear", 1e-4, 0.02)
    found = betas.timestep(spaced(betas, steps, "respaced").log_snr[:-1])
    expected = [round(999 * i / (steps - 1)) for i in reversed(range(steps))]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_more_respaced_steps_than_timesteps_are_refused():
    with pytest.raises(BadRequest, match="steps is 1001; expected at most 1000"):
        spaced(DiscreteBetas("linear", 1e-4, 0.02), 1001, "respaced")


def test_a_level_per_frame_may_name_the_level_of_the_state():
    state = NoiseLevel(f64(0.6), f64(0.8))
    assert NoiseLevel(f64(1, 0.6)[None], f64(0, 0.8)[None], state=state).state is state
    assert state.state is None


def test_a_batch_of_a_level_per_frame_keeps_the_level_of_the_state():
    own = variance_preserving(torch.tensor([0.5]))
    frames = variance_preserving(torch.tensor([[0.5, 3.0]]))
    batch = NoiseLevel(frames.alpha, frames.sigma, state=own).batch(3)
    assert batch.alpha.shape == (3, 2)
    assert batch.state is not None
    assert torch.equal(batch.state.alpha, own.alpha.expand(3))
    assert own.batch(2).state is None
