"""Samplers: one function each, all in terms of ``denoise(z, level) -> x0`` and levels (alpha, sigma).

Each takes ``z_BCTHW`` at ``levels[0]`` through the n steps of ``levels`` (n + 1 levels, noisiest first) and returns z
at ``levels[-1]``, which is x0 at the clean end (alpha 1, sigma 0). ``on_step(index, total, level_after, x0_BCTHW)`` is
called after each step, index from 1. Stochastic samplers draw from ``noise``. ``state`` overwrites z with the known
region at the start, after each step, and at intermediate states within a step.

In the docstrings a step goes from level t to level s; lambda = log(alpha / sigma) (half the log-SNR) and
h = lambda_s - lambda_t. Only ``exp(-h) = alpha_t sigma_s / (alpha_s sigma_t)`` is computed: it is 0 where alpha_t is 0
(the noise end of a flow) or sigma_s is 0, and every method then takes its first-order step.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from kinema.diffusion.noise import Noise
from kinema.diffusion.parameterise import Denoiser, eps_from_x0
from kinema.diffusion.schedules import NoiseLevel
from kinema.schema import BadRequest

OnStep = Callable[[int, int, NoiseLevel, Tensor], None]


State = Callable[[Tensor, int], Tensor]
"""``state(z, index)``: z at ``levels[index]``, overwritten with the known region."""
Sampler = Callable[..., Tensor]
"""``sampler(denoise, z, levels, *, noise, on_step=None, state=free, **options) -> z``; see `options`."""


def free(z: Tensor, _index: int) -> Tensor:
    """The `State` without a known region: z unchanged."""
    return z


# ------------------------------------------------------------------------------------ first order


@torch.no_grad()
def euler(
    denoise: Denoiser,
    z: Tensor,
    levels: NoiseLevel,
    *,
    noise: Noise,  # noqa: ARG001 (deterministic; the signature is every sampler's)
    on_step: OnStep | None = None,
    state: State = free,
) -> Tensor:
    """``z_s = alpha_s x0 + sigma_s eps_hat``.

    Equal to DDIM with eta 0 (Song et al. 2021, eq. 12), EDM's Euler step (Karras et al. 2022, alg. 1 without the
    correction) and the Euler step of a rectified flow.
    """
    z = state(z, 0)
    for i, t, s in _steps(levels, z):
        x0 = denoise(z, t)
        z = s.add_noise(x0, eps_from_x0(x0, z, t))
        z = state(z, i + 1)
        _report(on_step, i, levels, x0)
    return z


@torch.no_grad()
def ddim(
    denoise: Denoiser,
    z: Tensor,
    levels: NoiseLevel,
    *,
    noise: Noise,
    on_step: OnStep | None = None,
    state: State = free,
    eta: float = 0.0,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 and 16): eta 0 is deterministic, eta 1 is ancestral (DDPM) sampling.

    ``z_s = alpha_s x0 + sqrt(sigma_s² - up²) eps_hat + up eps``, ``up² = eta² (1 - exp(-2h)) sigma_s²``.
    """
    z = state(z, 0)
    for i, t, s in _steps(levels, z):
        x0 = denoise(z, t)
        up, down = _split(t, s, eta, z)
        z = s.like(z)[0] * x0 + down * eps_from_x0(x0, z, t)
        if eta:
            z = z + up * noise.like(z)
        z = state(z, i + 1)
        _report(on_step, i, levels, x0)
    return z


@torch.no_grad()
def euler_ancestral(
    denoise: Denoiser,
    z: Tensor,
    levels: NoiseLevel,
    *,
    noise: Noise,
    on_step: OnStep | None = None,
    state: State = free,
    eta: float = 1.0,
) -> Tensor:
    """k-diffusion's Euler ancestral: an ODE step to ``sqrt(sigma_s² - up²)``, then noise of standard deviation ``up``.

    In this formulation it equals DDIM with the same eta; the name is kept because users look for it.
    """
    return ddim(denoise, z, levels, noise=noise, on_step=on_step, state=state, eta=eta)


@torch.no_grad()
def vdm_ancestral(
    denoise: Denoiser,
    z: Tensor,
    levels: NoiseLevel,
    *,
    noise: Noise,
    on_step: OnStep | None = None,
    state: State = free,
    gamma: float = 0.3,
) -> Tensor:
    """Ancestral sampling with interpolated variance (VDM, section 2).

    ``z_s ~ N(mean of q(z_s | z_t, x0), lower^(1-gamma) upper^gamma)`` with the bounds on the variance
    ``lower = (1 - exp(-2h)) sigma_s²`` and ``upper = (1 - exp(-2h)) sigma_t²``. No noise is added at sigma_s = 0.
    """
    z = state(z, 0)
    for i, t, s in _steps(levels, z):
        x0 = denoise(z, t)
        z = ancestral_step(z, x0, t, s, noise, gamma)
        z = state(z, i + 1)
        _report(on_step, i, levels, x0)
    return z


@torch.no_grad()
def iddpm(
    denoise: Denoiser,
    z: Tensor,
    levels: NoiseLevel,
    *,
    noise: Noise,
    on_step: OnStep | None = None,
    state: State = free,
) -> Tensor:
    """Ancestral sampling with learned variance (Nichol & Dhariwal 2021, eq. 15).

    The step of `vdm_ancestral`, whose gamma is the network's ``(v + 1) / 2``: the denoiser returns v, in [-1, 1] as a
    rule, as further channels after those of x0. One that returns x0 alone gets the lower bound of the variance (DDPM).
    """
    z = state(z, 0)
    for i, t, s in _steps(levels, z):
        x0, v = (output := denoise(z, t))[:, : z.shape[1]], output[:, z.shape[1] :]
        z = ancestral_step(z, x0, t, s, noise, (v + 1) / 2 if v.shape[1] else 0.0)
        z = state(z, i + 1)
        _report(on_step, i, levels, x0)
    return z


@torch.no_grad()
def vdm_langevin(
    denoise: Denoiser,
    z: Tensor,
    levels: NoiseLevel,
    *,
    noise: Noise,
    on_step: OnStep | None = None,
    state: State = free,
    gamma: float = 0.0,
    delta: float = 0.1,
) -> Tensor:
    """Predictor-corrector: `vdm_ancestral`, each step followed by one `langevin_step` (VDM, section 2).

    Two network calls per step, except for the last, which ends at sigma 0 and needs no corrector.
    """
    z = state(z, 0)
    for i, t, s in _steps(levels, z):
        x0 = denoise(z, t)
        z = ancestral_step(z, x0, t, s, noise, gamma)
        if _positive(s.sigma):
            z = langevin_step(denoise, state(z, i + 1), s, noise, delta)
        z = state(z, i + 1)
        _report(on_step, i, levels, x0)
    return z


@torch.no_grad()
def lcm(
    denoise: Denoiser,
    z: Tensor,
    levels: NoiseLevel,
    *,
    noise: Noise,
    on_step: OnStep | None = None,
    state: State = free,
) -> Tensor:
    """Multistep consistency sampling (Luo et al. 2023, alg. 3): denoise, then add fresh noise to the next level.

    diffusers' LCMScheduler also blends ``c_skip(10 t) z`` into x0, with a weight below 3e-6 at t >= 30. That boundary
    condition is part of the distilled model and therefore of its denoiser, not of the sampler.
    """
    z = state(z, 0)
    for i, t, s in _steps(levels, z):
        x0 = denoise(z, t)
        z = s.add_noise(x0, noise.like(z)) if _positive(s.sigma) else s.like(z)[0] * x0
        z = state(z, i + 1)
        _report(on_step, i, levels, x0)
    return z


# ----------------------------------------------------------------------------------- second order


@torch.no_grad()
def heun(
    denoise: Denoiser,
    z: Tensor,
    levels: NoiseLevel,
    *,
    noise: Noise,
    on_step: OnStep | None = None,
    state: State = free,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
) -> Tensor:
    """Heun's method with churn (Karras et al. 2022, alg. 2; its S_churn, S_min, S_max and S_noise).

    In terms of z / alpha and sigma / alpha: ``z_s += (sigma_s - alpha_s sigma_t / alpha_t) (eps' - eps) / 2`` after the
    Euler step. ``churn`` raises sigma / alpha by the factor 1 + min(churn / n, sqrt 2 - 1) before a step, at the same
    alpha. A step that spans most of the noise end remains an Euler step (see `_trapezoid_helps`).
    """
    z = state(z, 0)
    for i, t, s in _steps(levels, z):
        if churn > 0 and churn_min <= _ratio(t) <= churn_max and _positive(t.alpha):
            up = 1 + min(churn / (len(levels) - 1), math.sqrt(2) - 1)
            z = z + t.like(z)[1] * math.sqrt(up**2 - 1) * churn_noise * noise.like(z)
            t = NoiseLevel(t.alpha, t.sigma * up)  # noqa: PLW2901
        x0 = denoise(z, t)
        eps = eps_from_x0(x0, z, t)
        z = s.add_noise(x0, eps)
        if _positive(s.sigma) and _trapezoid_helps(t, s):
            z = state(z, i + 1)
            x0 = denoise(z, s)
            stride = s.sigma - s.alpha * t.sigma / t.alpha
            z = z + NoiseLevel(stride, stride).like(z)[0] * (eps_from_x0(x0, z, s) - eps) / 2
        z = state(z, i + 1)
        _report(on_step, i, levels, x0)
    return z


@torch.no_grad()
def dpmpp_2m(
    denoise: Denoiser,
    z: Tensor,
    levels: NoiseLevel,
    *,
    noise: Noise,  # noqa: ARG001 (deterministic; the signature is every sampler's)
    on_step: OnStep | None = None,
    state: State = free,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, alg. 2).

    ``z_s = sigma_s / sigma_t z + alpha_s (1 - exp(-h)) D``, with ``D = x0 + (x0 - x0_before) h / (2 h_before)``.
    """
    before: Tensor | None = None
    z = state(z, 0)
    for i, t, s in _steps(levels, z):
        x0 = denoise(z, t)
        slope = _slope(x0, before, levels, i)
        z = _exponential(z, x0 + slope / 2, t, s)
        before = x0
        z = state(z, i + 1)
        _report(on_step, i, levels, x0)
    return z


@torch.no_grad()
def dpmpp_sde(
    denoise: Denoiser,
    z: Tensor,
    levels: NoiseLevel,
    *,
    noise: Noise,
    on_step: OnStep | None = None,
    state: State = free,
    eta: float = 1.0,
) -> Tensor:
    """SDE-DPM-Solver++(2M), midpoint form (Lu et al. 2022); eta as in k-diffusion, where 0 is `dpmpp_2m`.

    ``z_s = sigma_s / sigma_t exp(-eta h) z + alpha_s (1 - exp(-(1 + eta) h)) D + sigma_s sqrt(1 - exp(-2 eta h)) eps``.
    """
    before: Tensor | None = None
    z = state(z, 0)
    for i, t, s in _steps(levels, z):
        x0 = denoise(z, t)
        slope = _slope(x0, before, levels, i)
        z = _exponential(z, x0 + slope / 2, t, s, eta)
        if eta and _positive(s.sigma):
            shrink = _shrink(t, s)
            z = z + s.like(z)[1] * (1 - shrink ** (2 * eta)) ** 0.5 * noise.like(z)
        before = x0
        z = state(z, i + 1)
        _report(on_step, i, levels, x0)
    return z


@torch.no_grad()
def unipc(
    denoise: Denoiser,
    z: Tensor,
    levels: NoiseLevel,
    *,
    noise: Noise,  # noqa: ARG001 (deterministic; the signature is every sampler's)
    on_step: OnStep | None = None,
    state: State = free,
) -> Tensor:
    """UniPC of order 2 with B_2(h) = exp(h) - 1 and x0-prediction (Zhao et al. 2023, alg. 1 and 2).

    The predictor is that of `dpmpp_2m`. The x0 at the predicted point, which the next step needs anyway, also corrects
    that point (UniC, of order 1 in the first step, then 2). The last step has no corrector.
    """
    before: Tensor | None = None
    z = state(z, 0)
    x0 = denoise(z, levels[0].batch(len(z)))
    for i, t, s in _steps(levels, z):
        slope = _slope(x0, before, levels, i)
        predicted = _exponential(z, x0 + slope / 2, t, s)
        if _positive(s.sigma):
            predicted = state(predicted, i + 1)
            after = denoise(predicted, s)
            z = _correct(z, (before, x0, after), levels, i) if _positive(t.alpha) else predicted
            before, x0 = x0, after
        else:
            z = predicted
        z = state(z, i + 1)
        _report(on_step, i, levels, x0)
    return z


# --------------------------------------------------------------------------------- building blocks of steps


def ancestral_step(z: Tensor, x0: Tensor, t: NoiseLevel, s: NoiseLevel, noise: Noise, gamma: float | Tensor) -> Tensor:  # noqa: PLR0917
    """Sample q(z_s | z_t, x0) with its variance interpolated towards that of q(z_t | z_s) (VDM, section 2).

    ``gamma`` is a number, or one of each value of z.
    """
    mean, lower, upper = posterior(z, x0, t, s)
    if not _positive(s.sigma):
        return mean
    return mean + lower ** ((1 - gamma) / 2) * upper ** (gamma / 2) * noise.like(z)


def posterior(z: Tensor, x0: Tensor, t: NoiseLevel, s: NoiseLevel) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of q(z_s | z_t, x0), its variance ``(1 - r) sigma_s²`` and the bound ``(1 - r) sigma_t²`` (VDM, section 2).

    ``r = exp(lambda_t - lambda_s)`` in VDM's notation, where lambda is the log-SNR; the bound is sigma²_{t|s}.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = t.like(z), s.like(z)
    r = (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2
    mean = alpha_t * sigma_s**2 / (alpha_s * sigma_t**2) * z + (1 - r) * alpha_s * x0
    return mean, (1 - r) * sigma_s**2, (1 - r) * sigma_t**2


def langevin_step(denoise: Denoiser, z: Tensor, level: NoiseLevel, noise: Noise, delta: float) -> Tensor:
    """Langevin corrector ``z <- z - delta sigma eps_hat / 2 + sqrt(delta) sigma eps`` (VDM, section 2, delta = 0.1)."""
    sigma = level.like(z)[1]
    eps = eps_from_x0(denoise(z, level), z, level)
    return z - delta / 2 * sigma * eps + math.sqrt(delta) * sigma * noise.like(z)


def _steps(levels: NoiseLevel, z: Tensor) -> Iterator[tuple[int, NoiseLevel, NoiseLevel]]:
    """Yield (index from 0, level t, level s) of each step, with the levels expanded to z's batch."""
    if len(levels) < 2:
        raise BadRequest(f"sampling has {len(levels)} noise levels; expected at least two")
    if not bool((levels.log_snr.diff() > 0).all()):
        raise BadRequest("the noise levels are not strictly decreasing in noise")
    for i in range(len(levels) - 1):
        yield i, levels[i].batch(len(z)), levels[i + 1].batch(len(z))


def _report(on_step: OnStep | None, i: int, levels: NoiseLevel, x0: Tensor) -> None:
    if on_step is not None:
        on_step(i + 1, len(levels) - 1, levels[i + 1], x0)


def _positive(value: Tensor) -> bool:
    return bool((value > 0).all())


def _ratio(level: NoiseLevel) -> float:
    return math.exp(-float(level.log_snr[0]) / 2)


def _trapezoid_helps(t: NoiseLevel, s: NoiseLevel) -> bool:
    """False if rho = sigma / alpha drops more than tenfold above data scale (or from infinity).

    There eps_hat is proportional to 1 / rho. Over a drop by the factor f the trapezoidal rule integrates it to
    (f - 1) / 2 instead of log f; for f > 10 that error exceeds the Euler step's, which omits the term.
    """
    return _positive(t.alpha) and _ratio(t) <= 10 * max(_ratio(s), 1)


def _shrink(t: NoiseLevel, s: NoiseLevel) -> float:
    """exp(-h), in [0, 1)."""
    return float(t.alpha[0] * s.sigma[0] / (s.alpha[0] * t.sigma[0]))


def _split(t: NoiseLevel, s: NoiseLevel, eta: float, z: Tensor) -> tuple[Tensor, Tensor]:
    """Split sigma_s into (fresh noise ``up``, kept noise ``down``) with ``up² + down² = sigma_s²``."""
    sigma = s.like(z)[1]
    fresh = eta**2 * (1 - _shrink(t, s) ** 2)
    if fresh > 1:
        raise BadRequest(f"eta is {eta:g}; expected at most {eta / math.sqrt(fresh):.3g} for these noise levels")
    return sigma * math.sqrt(fresh), sigma * math.sqrt(1 - fresh)


def _exponential(z: Tensor, x0: Tensor, t: NoiseLevel, s: NoiseLevel, eta: float = 0.0) -> Tensor:
    """Exponential step, exact for constant x0.

    ``sigma_s / sigma_t exp(-eta h) z + alpha_s (1 - exp(-(1 + eta) h)) x0``.
    """
    (_, sigma_t), (alpha_s, sigma_s) = t.like(z), s.like(z)
    shrink = _shrink(t, s)
    return sigma_s / sigma_t * shrink**eta * z + alpha_s * (1 - shrink ** (1 + eta)) * x0


def _slope(x0: Tensor, before: Tensor | None, levels: NoiseLevel, i: int) -> Tensor:
    """h dx0/dlambda from the last two x0; zero in the first step and where h or the previous h is infinite."""
    if before is None or not _positive(levels.alpha[i - 1]) or not _positive(levels.sigma[i + 1]):
        return torch.zeros_like(x0)
    h, h_before = levels.log_snr[i + 1] - levels.log_snr[i], levels.log_snr[i] - levels.log_snr[i - 1]
    return (x0 - before) * float(h / h_before)


def _correct(z: Tensor, x0s: tuple[Tensor | None, Tensor, Tensor], levels: NoiseLevel, i: int) -> Tensor:
    """UniC-1 or UniC-2 for step i, from the x0 before, at and after it (Zhao et al. 2023: R_p rho = b_p)."""
    before, x0, after = x0s
    t, s = levels[i], levels[i + 1]
    slope = _slope(x0, before, levels, i)
    if before is None or not _positive(levels.alpha[i - 1]):
        return _exponential(z, x0 + (after - x0) / 2, t, s)
    h = float(levels.log_snr[i + 1] - levels.log_snr[i]) / 2
    r = float((levels.log_snr[i] - levels.log_snr[i - 1]) / (levels.log_snr[i + 1] - levels.log_snr[i]))
    # rho_1 + rho_2 = b_1 and -r rho_1 + rho_2 = b_2; slope is (before - x0) / -r.
    whole = 1 / -math.expm1(-h)
    b_1 = whole - 1 / h
    b_2 = whole - 2 * b_1 / h
    rho_1 = (b_1 - b_2) / (1 + r)
    return _exponential(z, x0 + rho_1 * slope + (b_1 - rho_1) * (after - x0), t, s)


def options(name: str) -> dict[str, Any]:
    """Return a sampler's options with their defaults: {"eta": 0.0} for "ddim"."""
    if name not in SAMPLERS:
        raise BadRequest(f"there is no sampler {name!r}; expected one of {', '.join(SAMPLERS)}")
    keywords = [p for p in inspect.signature(SAMPLERS[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return {p.name: p.default for p in keywords if p.name not in ("noise", "on_step", "state")}


SAMPLERS: dict[str, Sampler] = {
    "vdm-ancestral": vdm_ancestral,
    "vdm-langevin": vdm_langevin,
    "iddpm": iddpm,
    "ddim": ddim,
    "euler": euler,
    "euler-ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp-2m": dpmpp_2m,
    "dpmpp-sde": dpmpp_sde,
    "unipc": unipc,
    "lcm": lcm,
}
