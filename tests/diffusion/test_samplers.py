"""Samplers on distributions with known scores: convergence orders, limits, agreement of the three formulations."""

from __future__ import annotations

import math

import pytest
import torch

from kinema.diffusion.noise import Noise
from kinema.diffusion.parameterise import eps_from_x0
from kinema.diffusion.samplers import SAMPLERS, langevin_step, options, posterior
from kinema.diffusion.schedules import (
    CosineLogSNR,
    DiscreteBetas,
    EDMSigmas,
    NoiseLevel,
    RectifiedFlow,
    custom,
    flow,
    spaced,
    variance_exploding,
    variance_preserving,
)
from kinema.schema import BadRequest

MEANS = torch.tensor([-1.0, 0.6], dtype=torch.float64)
STDS = torch.tensor([0.3, 0.4], dtype=torch.float64)
SHARES = torch.tensor([0.35, 0.65], dtype=torch.float64)
FORMS = [variance_preserving, variance_exploding, flow]
SCHEDULES = [CosineLogSNR(), DiscreteBetas("scaled_linear", 0.00085, 0.012), EDMSigmas(0.002, 80.0), RectifiedFlow(3.0)]
DETERMINISTIC = ["ddim", "euler", "heun", "dpmpp-2m", "unipc"]
STOCHASTIC = ["vdm-ancestral", "vdm-langevin", "euler-ancestral", "dpmpp-sde"]


def mixture(z, level):
    """E[x0 | z] of a mixture of two Gaussians, pixel by pixel."""
    alpha, sigma = (item.unsqueeze(-1) for item in level.like(z))
    z = z.unsqueeze(-1)
    variance = alpha**2 * STDS**2 + sigma**2
    log_share = SHARES.log() - variance.log() / 2 - (z - alpha * MEANS) ** 2 / (2 * variance)
    mean = MEANS + alpha * STDS**2 / variance * (z - alpha * MEANS)
    return (log_share.softmax(-1) * mean).sum(-1)


def cdf(z, level):
    alpha, sigma = level.alpha.to(z), level.sigma.to(z)
    spread = torch.hypot(alpha * STDS, sigma)
    return (SHARES * torch.special.ndtr((z.unsqueeze(-1) - alpha * MEANS) / spread)).sum(-1)


def quantile(u, level):
    low, high = torch.full_like(u, -1e4), torch.full_like(u, 1e4)
    for _ in range(120):
        middle = (low + high) / 2
        below = cdf(middle, level) < u
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def as_video(values):
    return values.reshape(1, 1, 1, 1, -1)


U = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)


def error(name, levels, **own):
    """Distance to the exact flow: in one dimension it maps quantiles to quantiles."""
    z = as_video(quantile(U, levels[0]))
    found = SAMPLERS[name](mixture, z, levels, noise=Noise([0]), **own)
    return float((found.flatten() - quantile(U, levels[-1])).abs().mean())


def distance(samples, level):
    """Kolmogorov-Smirnov distance to the exact distribution."""
    u = cdf(samples.flatten().double(), level).sort().values
    n = len(u)
    return float((u - (torch.arange(n) + 0.5) / n).abs().max()) + 0.5 / n


# ----------------------------------------------------------------------------------------- orders


def stretch(form, steps):
    """Karras-spaced levels from sigma / alpha = 12 to 0.1, fine enough that the order dominates."""
    even = torch.linspace(12 ** (1 / 3), 0.1 ** (1 / 3), steps + 1, dtype=torch.float64)
    return form(-2 * 3 * even.log())


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("name", "order"), [("ddim", 1), ("euler", 1), ("heun", 2), ("dpmpp-2m", 2), ("unipc", 3)], ids=lambda x: str(x)
)
def test_deterministic_samplers_converge_at_their_order(name, order, form):
    """UniPC's corrector lifts its order-2 predictor to 3 (Zhao et al. 2023, theorem on UniPC-p)."""
    errors = [error(name, stretch(form, steps)) for steps in (40, 80, 160)]
    slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert order - 0.2 < min(slopes) <= max(slopes) < order + 0.3, (errors, slopes)
    assert errors[-1] < 0.6 * 10.0 ** -(order + 1)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(
    ("name", "steps", "bound"),
    [("ddim", 200, 0.02), ("euler", 200, 0.02)] + [(name, 100, 0.01) for name in ("heun", "dpmpp-2m", "unipc")],
)
def test_deterministic_samplers_reach_the_data_from_every_schedule(name, steps, bound, schedule):
    """From pure noise to the clean end, including ends with alpha 0 or sigma 0."""
    spacing = "karras" if isinstance(schedule, EDMSigmas) else "uniform"
    levels = spaced(schedule, steps, spacing)
    z = as_video(quantile(U, levels[0]))
    found = SAMPLERS[name](mixture, z, levels, noise=Noise([0])).flatten()
    assert float((found - quantile(U, levels[-1])).abs().mean()) < bound


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("vdm-ancestral", {"gamma": 0.0}),
        ("vdm-ancestral", {"gamma": 0.3}),
        ("vdm-langevin", {"gamma": 0.0, "delta": 0.1}),
        ("ddim", {"eta": 1.0}),
        ("ddim", {"eta": 0.5}),
        ("euler-ancestral", {}),
        ("dpmpp-sde", {}),
        ("dpmpp-sde", {"eta": 0.5}),
        ("heun", {"churn": 20.0, "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.003}),
    ],
    ids=str,
)
def test_stochastic_samplers_sample_the_mixture(name, own, schedule):
    levels = spaced(schedule, 128, "karras" if isinstance(schedule, EDMSigmas) else "uniform")
    noise = Noise([1, 2])
    z = schedule.prior_std * noise.normal((1, 1, 64, 64)).double()
    found = SAMPLERS[name](mixture, z, levels, noise=noise, **own)
    # Exact sampling stays below 0.0215 with probability 0.999 (8,192 samples); the rest allows for discretisation.
    assert distance(found, levels[-1]) < 0.025
    assert float(found.mean()) == pytest.approx(float((SHARES * MEANS).sum()), abs=0.05)


def test_the_bound_on_the_distance_would_catch_a_wrong_sampler():
    """DDIM's step with the noise of eta 1 but without reducing eps_hat accordingly: too wide."""
    levels = spaced(CosineLogSNR(), 128)
    noise = Noise([1, 2])
    z = noise.normal((1, 1, 64, 64)).double()
    for i in range(128):
        t, s = levels[i].batch(2), levels[i + 1].batch(2)
        x0 = mixture(z, t)
        z = s.add_noise(x0, eps_from_x0(x0, z, t))
        z = z + posterior(z, x0, t, s)[1].sqrt() * noise.like(z)
    assert distance(z, levels[-1]) > 0.1


@pytest.mark.parametrize("name", ["ddim", "dpmpp-sde"])
def test_stochastic_samplers_improve_with_more_steps(name):
    """Exact second moment: for Gaussian data a step is linear, so its spread follows without sampling."""

    class Exact:
        """Noise orthogonal to all earlier noise, so that variances add without sampling error."""

        def __init__(self, size):
            self.axis, self.size = 0, size

        def like(self, z):
            self.axis += 1
            return torch.nn.functional.one_hot(torch.tensor(self.axis), self.size).to(z).reshape(z.shape)

    def spread(steps):
        levels = stretch(variance_preserving, steps)
        z = torch.zeros(1, 1, 1, 1, steps + 2, dtype=torch.float64)
        z[..., 0] = torch.hypot(levels.alpha[0] * 0.5, levels.sigma[0])
        found = SAMPLERS[name](gaussian, z, levels, noise=Exact(steps + 2), eta=1.0)
        return abs(float(found.square().sum().sqrt() / torch.hypot(levels.alpha[-1] * 0.5, levels.sigma[-1])) - 1)

    errors = [spread(steps) for steps in (40, 80, 160)]
    slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert min(slopes) > (0.85 if name == "ddim" else 1.75), (errors, slopes)


def gaussian(z, level, std=0.5):
    """E[x0 | z] of N(0, std²)."""
    alpha, sigma = level.like(z)
    return alpha * std**2 / (alpha**2 * std**2 + sigma**2) * z


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_lcm_with_a_consistency_function_samples_the_mixture_in_any_number_of_steps(schedule, steps):
    """The exact consistency function maps each level's quantiles to the data's."""
    levels = spaced(schedule, steps, "karras" if isinstance(schedule, EDMSigmas) else "uniform")
    clean = levels[-1]

    def consistency(z, level):
        return quantile(cdf(z, level[0]), clean)

    noise = Noise([3])
    z = quantile(torch.special.ndtr(noise.normal((1, 1, 50, 80)).double()), levels[0])
    assert distance(SAMPLERS["lcm"](consistency, z, levels, noise=noise), clean) < 0.035


# ------------------------------------------------------------------------- one step in three formulations


def test_ddim_euler_and_rectified_flow_agree_step_by_step():
    """z / alpha as a function of sigma / alpha is one trajectory for any scaling."""
    trajectories = []
    for form, name in ((variance_preserving, "ddim"), (variance_exploding, "euler"), (flow, "euler")):
        levels = stretch(form, 12)
        z = 13 * torch.linspace(-2, 2, 30, dtype=torch.float64).reshape(1, 1, 2, 3, 5) * levels.alpha[0]
        seen = []

        def keep(index, total, after, x0, seen=seen):
            seen.append(x0)

        final = SAMPLERS[name](mixture, z, levels, noise=Noise([0]), on_step=keep)
        trajectories.append([*seen, final / levels.alpha[-1]])
    for other in trajectories[1:]:
        for first, second in zip(trajectories[0], other, strict=True):
            torch.testing.assert_close(first, second, atol=1e-12, rtol=1e-12)


def test_one_step_matches_each_papers_formula():
    z = torch.linspace(-3, 3, 20, dtype=torch.float64).reshape(1, 1, 1, 4, 5)
    log_snr = torch.tensor([-1.5, 0.7], dtype=torch.float64)

    def run(levels, name="euler"):
        return SAMPLERS[name](mixture, z, levels, noise=Noise([0]))

    vp = variance_preserving(log_snr)
    eps = eps_from_x0(mixture(z, vp[0]), z, vp[0])
    a_t, a_s = vp.alpha**2  # DDIM, eq. 12
    ddim = a_s.sqrt() * (z - (1 - a_t).sqrt() * eps) / a_t.sqrt() + (1 - a_s).sqrt() * eps
    torch.testing.assert_close(run(vp, "ddim"), ddim)

    ve = variance_exploding(log_snr)
    slope = (z - mixture(z, ve[0])) / ve.sigma[0]
    torch.testing.assert_close(run(ve), z + (ve.sigma[1] - ve.sigma[0]) * slope)

    rf = flow(log_snr)
    x0 = mixture(z, rf[0])
    velocity = (z - x0) / rf.sigma[0]  # eps - x0
    torch.testing.assert_close(run(rf), z + (rf.sigma[1] - rf.sigma[0]) * velocity)


def test_ddim_eta_is_equation_16():
    z, eta = torch.randn(1, 1, 1, 4, 5, dtype=torch.float64), 0.6
    levels = variance_preserving(torch.tensor([-1.5, 0.7], dtype=torch.float64))
    a_t, a_s = levels.alpha**2
    x0 = mixture(z, levels[0])
    eps = eps_from_x0(x0, z, levels[0])
    up = eta * ((1 - a_s) / (1 - a_t)).sqrt() * (1 - a_t / a_s).sqrt()
    expected = a_s.sqrt() * x0 + (1 - a_s - up**2).sqrt() * eps + up * Noise([4]).like(z)
    torch.testing.assert_close(SAMPLERS["ddim"](mixture, z, levels, noise=Noise([4]), eta=eta), expected)


def test_euler_ancestral_is_k_diffusions():
    z, eta = 5 * torch.randn(1, 1, 1, 4, 5, dtype=torch.float64), 0.8
    levels = custom(EDMSigmas(), sigmas=[6.0, 2.0])
    (t, s), x0 = levels.sigma, mixture(z, levels[0])
    up = min(s, eta * (s**2 * (t**2 - s**2) / t**2) ** 0.5)
    expected = z + (z - x0) / t * ((s**2 - up**2) ** 0.5 - t) + up * Noise([4]).like(z)
    found = SAMPLERS["euler-ancestral"](mixture, z, levels, noise=Noise([4]), eta=eta)
    torch.testing.assert_close(found, expected)


def test_heun_with_churn_is_edm_algorithm_2():
    sigmas, churn, low, high, noise_scale = [20.0, 8.0, 3.0, 1.0, 0.2, 0.0], 2.0, 0.5, 10.0, 1.01
    z = 20 * torch.randn(1, 1, 1, 4, 5, dtype=torch.float64)
    noise = Noise([6])
    x = z
    for t, s in zip(sigmas, sigmas[1:], strict=False):
        gamma = min(churn / 5, math.sqrt(2) - 1) if low <= t <= high else 0.0
        t_hat = t * (1 + gamma)
        if gamma:
            x = x + math.sqrt(t_hat**2 - t**2) * noise_scale * noise.like(x)
        one = torch.ones(1).double()
        d = (x - mixture(x, NoiseLevel(one, one * t_hat))) / t_hat
        step = x + (s - t_hat) * d
        if s:
            d_after = (step - mixture(step, NoiseLevel(one, one * s))) / s
            step = x + (s - t_hat) * (d + d_after) / 2
        x = step
    own = {"churn": churn, "churn_min": low, "churn_max": high, "churn_noise": noise_scale}
    found = SAMPLERS["heun"](mixture, z, custom(EDMSigmas(), sigmas=sigmas), noise=Noise([6]), **own)
    torch.testing.assert_close(found, x)


def test_dpmpp_sde_with_eta_0_is_dpmpp_2m():
    levels = spaced(RectifiedFlow(), 8)
    z = torch.randn(1, 1, 1, 4, 5, dtype=torch.float64)
    found = SAMPLERS["dpmpp-sde"](mixture, z, levels, noise=Noise([0]), eta=0.0)
    torch.testing.assert_close(found, SAMPLERS["dpmpp-2m"](mixture, z, levels, noise=Noise([0])))


# ---------------------------------------------------------------------------------- VDM's samplers


def test_posterior_is_bayes():
    """q(z_s | z_t, x0) from the product of q(z_t | z_s) and q(z_s | x0), by precision weighting."""
    levels = variance_preserving(torch.tensor([-2.0, 1.3], dtype=torch.float64))
    (alpha_t, alpha_s), (sigma_t, sigma_s) = levels.alpha, levels.sigma
    z, x0 = torch.randn(2, 1, 1, 1, 4, 5, dtype=torch.float64)
    z, x0 = z.unsqueeze(0), x0.unsqueeze(0)
    ratio = alpha_t / alpha_s
    between = sigma_t**2 - ratio**2 * sigma_s**2
    precision = 1 / sigma_s**2 + ratio**2 / between
    mean, lower, upper = posterior(z, x0, levels[0], levels[1])
    torch.testing.assert_close(
        mean, (alpha_s * x0 / sigma_s**2 + ratio * z / between) / precision, atol=1e-15, rtol=1e-14
    )
    torch.testing.assert_close(lower.flatten(), 1 / precision.reshape(1), atol=1e-16, rtol=1e-13)
    torch.testing.assert_close(upper.flatten(), between.reshape(1), atol=1e-16, rtol=1e-13)


@pytest.mark.parametrize(("gamma", "bound"), [(0.0, 1), (1.0, 2)])
def test_gamma_0_and_1_are_the_two_variance_bounds(gamma, bound):
    levels = variance_preserving(torch.tensor([-2.0, 1.3], dtype=torch.float64))
    z = torch.randn(1, 1, 1, 4, 5, dtype=torch.float64)
    parts = posterior(z, mixture(z, levels[0]), levels[0], levels[1])
    found = SAMPLERS["vdm-ancestral"](mixture, z, levels, noise=Noise([2]), gamma=gamma)
    torch.testing.assert_close(found, parts[0] + parts[bound].sqrt() * Noise([2]).like(z))


def test_gamma_between_interpolates_the_log_variance():
    levels = variance_preserving(torch.tensor([-2.0, 1.3], dtype=torch.float64))
    z = torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64)
    low, middle, high = (
        float(SAMPLERS["vdm-ancestral"](lambda z, _: 0 * z, z, levels, noise=Noise([2]), gamma=gamma).abs().log())
        for gamma in (0.0, 0.3, 1.0)
    )
    assert middle == pytest.approx(0.7 * low + 0.3 * high)


def test_ancestral_with_gamma_0_is_ddim_with_eta_1():
    levels = spaced(CosineLogSNR(), 9)
    z = torch.randn(1, 1, 1, 4, 5, dtype=torch.float64)
    ddim = SAMPLERS["ddim"](mixture, z, levels, noise=Noise([5]), eta=1.0)
    torch.testing.assert_close(SAMPLERS["vdm-ancestral"](mixture, z, levels, noise=Noise([5]), gamma=0.0), ddim)


@pytest.mark.parametrize(("log_snr", "std", "delta"), [(0.0, 0.7, 0.1), (-2.0, 0.5, 0.3), (1.5, 2.0, 0.05)])
def test_langevin_drifts_a_gaussians_variance_by_exactly_delta2_sigma4_over_4_s4(log_snr, std, delta):
    """Relative drift per step, for z of variance s² = alpha² std² + sigma²: the step is linear in z and the noise."""
    level = variance_preserving(torch.tensor([log_snr], dtype=torch.float64))
    s2 = float(level.alpha**2 * std**2 + level.sigma**2)
    sigma = float(level.sigma)

    class Fixed:
        def __init__(self, value):
            self.value = value

        def like(self, z):
            return torch.full_like(z, self.value)

    def step(z, eps):
        start = torch.full((1, 1, 1, 1, 1), z, dtype=torch.float64)
        return float(langevin_step(lambda z, lv: gaussian(z, lv, std), start, level, Fixed(eps), delta))

    variance = step(1.0, 0.0) ** 2 * s2 + step(0.0, 1.0) ** 2
    assert variance / s2 - 1 == pytest.approx(delta**2 * sigma**4 / (4 * s2**2), rel=1e-9, abs=1e-15)


def test_langevin_calls_the_network_twice_per_step_but_once_in_the_last():
    calls = []

    def counted(z, level):
        calls.append(float(level.sigma[0]))
        return mixture(z, level)

    levels = spaced(CosineLogSNR(), 5)
    SAMPLERS["vdm-langevin"](counted, torch.randn(1, 1, 1, 2, 2), levels, noise=Noise([0]))
    assert len(calls) == 9
    assert min(calls) > 0


# ------------------------------------------------------------------------------- shared behaviour

CALLS = {"heun": 11, "vdm-langevin": 11}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_reports_each_step_and_returns_the_last_x0(name):
    levels, seen, calls = spaced(EDMSigmas(0.01, 20.0), 6, "karras"), [], []

    def counted(z, level):
        assert level.alpha.shape == level.sigma.shape == (2,)
        calls.append(level)
        return mixture(z, level)

    def keep(index, total, after, x0):
        seen.append((index, total, float(after.sigma)))
        assert x0.shape == (2, 1, 2, 3, 3)

    z = 20 * torch.randn(2, 1, 2, 3, 3, dtype=torch.float64)
    found = SAMPLERS[name](counted, z, levels, noise=Noise([0, 1]), on_step=keep)
    assert seen == [(i + 1, 6, float(levels.sigma[i + 1])) for i in range(6)]
    assert len(calls) == CALLS.get(name, 6)
    assert bool(found.isfinite().all())
    assert found.dtype == z.dtype


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_item_of_a_batch_equals_its_single_run(name):
    levels = spaced(CosineLogSNR(), 6)
    z = torch.randn(2, 1, 2, 3, 3, dtype=torch.float64)
    both = SAMPLERS[name](mixture, z, levels, noise=Noise([7, 8]))
    single = SAMPLERS[name](mixture, z[1:], levels, noise=Noise([8]))
    torch.testing.assert_close(both[1:], single, atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_common_scale_of_levels_only_scales_z(name):
    """Scalings with the same log-SNR are the same process; only gamma > 0 mixes variances of two scales."""
    own = {"gamma": 0.0} if "gamma" in options(name) else {}
    vp, rf = stretch(variance_preserving, 6), stretch(flow, 6)
    z = torch.randn(1, 1, 2, 3, 3, dtype=torch.float64)
    first = SAMPLERS[name](mixture, z * vp.alpha[0], vp, noise=Noise([7]), **own) / vp.alpha[-1]
    second = SAMPLERS[name](mixture, z * rf.alpha[0], rf, noise=Noise([7]), **own) / rf.alpha[-1]
    torch.testing.assert_close(first, second, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_from_a_flows_noise_end_returns_its_x0(name):
    levels = spaced(RectifiedFlow(), 1)
    z = torch.randn(1, 1, 2, 3, 3, dtype=torch.float64)
    found = SAMPLERS[name](mixture, z, levels, noise=Noise([7]))
    torch.testing.assert_close(found, mixture(z, levels[0]))


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_record_no_graph(name):
    weight = torch.ones((), requires_grad=True)
    found = SAMPLERS[name](
        lambda z, lv: weight * mixture(z, lv), torch.randn(1, 1, 1, 2, 2), spaced(CosineLogSNR(), 3), noise=Noise([0])
    )
    assert not found.requires_grad


def test_levels_that_do_not_decrease_or_are_fewer_than_two_are_rejected():
    z = torch.randn(1, 1, 1, 2, 2)
    for levels in (variance_preserving(torch.tensor([1.0, -1.0])), variance_preserving(torch.tensor([1.0]))):
        with pytest.raises(BadRequest, match="noise levels"):
            SAMPLERS["euler"](mixture, z, levels, noise=Noise([0]))


def test_an_eta_that_is_too_large_is_rejected():
    with pytest.raises(BadRequest, match="eta"):
        SAMPLERS["ddim"](mixture, torch.randn(1, 1, 1, 2, 2), spaced(CosineLogSNR(), 4), noise=Noise([0]), eta=2.0)


def test_options_are_those_of_the_sampler():
    assert options("ddim") == {"eta": 0.0}
    assert options("vdm-langevin") == {"gamma": 0.0, "delta": 0.1}
    assert options("euler") == {}
    assert set(options("heun")) == {"churn", "churn_min", "churn_max", "churn_noise"}
    with pytest.raises(BadRequest, match="vdm-ancestral"):
        options("plms")


# ------------------------------------------------------------------------------------ learned variance


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_iddpm_takes_its_variance_from_the_channels_after_x0(gamma):
    """Nichol & Dhariwal 2021, eq. 15: v in [-1, 1] lies between the two bounds of `vdm_ancestral`."""
    levels, seen = spaced(CosineLogSNR(), 9), []
    z = torch.randn(1, 2, 1, 4, 5, dtype=torch.float64)

    def learned(z, level):
        return torch.cat([mixture(z, level), torch.full_like(z, 2 * gamma - 1)], 1)

    def keep(_index, _total, _level, x0):
        seen.append(x0.shape)

    found = SAMPLERS["iddpm"](learned, z, levels, noise=Noise([5]), on_step=keep)
    torch.testing.assert_close(found, SAMPLERS["vdm-ancestral"](mixture, z, levels, noise=Noise([5]), gamma=gamma))
    assert set(seen) == {z.shape}


def test_each_value_has_its_own_variance():
    levels = variance_preserving(torch.tensor([-2.0, 1.3], dtype=torch.float64))
    z = torch.randn(1, 1, 1, 2, 1, dtype=torch.float64)
    v = torch.tensor([-1.0, 1.0], dtype=torch.float64).reshape(z.shape)
    mean, lower, upper = posterior(z, mixture(z, levels[0]), levels[0], levels[1])
    found = SAMPLERS["iddpm"](lambda z, t: torch.cat([mixture(z, t), v], 1), z, levels, noise=Noise([2]))
    variance = torch.where(v < 0, lower, upper)
    torch.testing.assert_close(found, mean + variance.sqrt() * Noise([2]).like(z))
