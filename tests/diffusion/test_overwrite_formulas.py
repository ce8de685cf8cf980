"""Uses of overwriting against written-out formulas of the use and the solver, for multistep and stochastic solvers."""

from __future__ import annotations

import math

import pytest
import torch

from kinema.diffusion.noise import Noise
from kinema.diffusion.overwrite import KnownRegion, Overwrite, release_at_ratio
from kinema.diffusion.samplers import SAMPLERS
from kinema.diffusion.schedules import CosineLogSNR, spaced

SHAPE = (2, 2, 5, 3, 4)
LEVELS = spaced(CosineLogSNR(), 6)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CONTENT, FIXED = random(*SHAPE, seed=2), random(*SHAPE, seed=3)
FIRST = torch.zeros(1, 1, *SHAPE[2:], dtype=torch.float64).index_fill(2, torch.tensor([0, 1]), 1)
EVERYWHERE = torch.ones(1, 1, *SHAPE[2:], dtype=torch.float64)
TIMES = torch.linspace(1, 0, 7)


def mixing(z):
    """A denoiser that mixes frames, so that known frames influence unknown ones."""
    return 0.5 * z.roll(1, 2) + 0.3 * z.tanh()


def written(name, denoise, draws):
    """A solver's ``step(z, i, hold)`` over `LEVELS` by its paper's formula; ``hold(z, i)`` overwrites a state.

    Histories keep the network's outputs, even where the state is overwritten afterwards.
    """
    alpha, sigma = LEVELS.alpha.tolist(), LEVELS.sigma.tolist()
    half = (LEVELS.log_snr / 2).tolist()
    history = []

    def second_order(i, x0):
        """h dx0/dlambda, from the previous x0."""
        if not history or sigma[i + 1] == 0:
            return 0
        return (x0 - history[-1]) * (half[i + 1] - half[i]) / (half[i] - half[i - 1])

    def exponential(z, x0, i):
        shrink = alpha[i] * sigma[i + 1] / (alpha[i + 1] * sigma[i])
        return sigma[i + 1] / sigma[i] * z + alpha[i + 1] * (1 - shrink) * x0

    def multistep(z, i, hold):
        """DPM-Solver++(2M)."""
        x0 = denoise(z)
        result = exponential(z, x0 + second_order(i, x0) / 2, i)
        history.append(x0)
        return result

    def unipc(z, i, hold):
        """UniPC as diffusers writes it: R rho = b with phi functions of -h."""
        x0 = history.pop() if history else denoise(z)
        predicted = exponential(z, x0 + second_order(i, x0) / 2, i)
        if sigma[i + 1] == 0:
            return predicted
        after = denoise(hold(predicted, i + 1))
        h = half[i + 1] - half[i]
        if not history:
            found = exponential(z, x0 + (after - x0) / 2, i)
        else:
            ratio = (half[i - 1] - half[i]) / h
            phi_1 = math.expm1(-h)
            phi_2 = phi_1 / -h - 1
            b = torch.tensor([phi_2 / phi_1, 2 * (phi_2 / -h - 1 / 2) / phi_1], dtype=torch.float64)
            rows = torch.tensor([[1, 1], [ratio, 1]], dtype=torch.float64)
            first, second = torch.linalg.solve(rows, b).tolist()
            slope = (history[-1] - x0) / ratio
            found = exponential(z, x0, i) - alpha[i + 1] * phi_1 * (first * slope + second * (after - x0))
        history[:] = [x0, after]
        return found

    def ddim(z, i, hold):
        """Song et al. 2021, eq. 12 and 16, with eta 1."""
        x0 = denoise(z)
        shrink = alpha[i] * sigma[i + 1] / (alpha[i + 1] * sigma[i])
        up = sigma[i + 1] * math.sqrt(1 - shrink**2)
        down = math.sqrt(sigma[i + 1] ** 2 - up**2)
        return alpha[i + 1] * x0 + down * (z - alpha[i] * x0) / sigma[i] + up * draws.like(z)

    def ancestral(z, i, hold):
        """VDM, section 2, gamma 0.3: q(z_s | z_t, x0) with its variance between the two bounds."""
        mean, variance = combined(z, denoise(z), i, i + 1)
        if sigma[i + 1] == 0:
            return mean
        upper = sigma[i] ** 2 - (alpha[i] / alpha[i + 1] * sigma[i + 1]) ** 2
        return mean + math.sqrt(variance**0.7 * upper**0.3) * draws.like(z)

    return {"dpmpp-2m": multistep, "unipc": unipc, "ddim": ddim, "vdm-ancestral": ancestral}[name]


def combined(z, x0, i, j):
    """Mean and variance of q(z_j | z_i, x0): the product of two Gaussians."""
    if float(LEVELS.sigma[j]) == 0:
        return float(LEVELS.alpha[j]) * x0, 0.0
    (a_i, a_j), (s_i, s_j) = LEVELS.alpha[[i, j]].tolist(), LEVELS.sigma[[i, j]].tolist()
    kept = a_i / a_j
    added = s_i**2 - (kept * s_j) ** 2
    variance = 1 / (1 / s_j**2 + kept**2 / added)
    return variance * (a_j * x0 / s_j**2 + kept * z / added), variance


def noised(eps, i):
    return LEVELS.alpha[i] * CONTENT + LEVELS.sigma[i] * eps


def replacement(region_noise):
    """VDM's replacement methods (section 3.1): the first frames from q(z_s | x^a) or q(z_s | x^a, z_t)."""
    draws, states = Noise((5, 6)), {}

    def hold(z, i):
        if i not in states:
            if float(LEVELS.sigma[i]) == 0:
                states[i] = CONTENT
            elif region_noise == "posterior" and i:
                mean, variance = combined(states[i - 1], CONTENT, i - 1, i)
                states[i] = mean + math.sqrt(variance) * draws.like(z)
            else:
                states[i] = noised(draws.like(z), i)
        return torch.where(FIRST > 0, states[i], z)

    return [KnownRegion(CONTENT, FIRST, None, region_noise)], 0, hold


def sdedit():
    """Meng et al. 2022, alg. 1."""
    return [KnownRegion(CONTENT, EVERYWHERE, 2, "fixed")], 2, lambda z, i: noised(FIXED, 2) if i == 2 else z


def edit_ratio():
    """Open-Sora: frames are the source's, noised, while the time is above the ratio."""
    release = release_at_ratio(0.5, TIMES)
    assert release == 3

    def hold(z, i):
        return torch.where(FIRST > 0, noised(FIXED, i), z) if i <= release else z

    return [KnownRegion(CONTENT, FIRST, release, "fixed")], 0, hold


def moving():
    """Time-to-Move: the whole clip until state 2, moving objects until state 4."""

    def hold(z, i):
        return noised(FIXED, 2) if i == 2 else torch.where(FIRST > 0, noised(FIXED, i), z) if i <= 4 else z

    return [KnownRegion(CONTENT, EVERYWHERE, 2, "fixed"), KnownRegion(CONTENT, FIRST, 4, "fixed")], 2, hold


USES = {
    "fresh replacement": lambda: replacement("fresh"),
    "posterior replacement": lambda: replacement("posterior"),
    "SDEdit": sdedit,
    "edit ratio": edit_ratio,
    "Time-to-Move": moving,
}


@pytest.mark.parametrize("name", ["dpmpp-2m", "unipc", "ddim", "vdm-ancestral"])
@pytest.mark.parametrize("use", USES)
def test_every_use_matches_its_formula_with_multistep_and_stochastic_solvers(use, name):
    pieces, first, hold = USES[use]()
    over, start = Overwrite(pieces, LEVELS, Noise((5, 6)), FIXED), random(*SHAPE, seed=9)
    assert over.first == first
    own = {"eta": 1.0} if name == "ddim" else {}
    run = {"noise": Noise([0, 1]), "state": over.run(first), **own}
    found = SAMPLERS[name](over.around(lambda z, level: mixing(z)), over.start(start), LEVELS[first:], **run)

    def denoise(z):
        x0 = mixing(z)
        return torch.where(FIRST > 0, CONTENT, x0) if "replacement" in use else x0

    step, z = written(name, denoise, Noise([0, 1])), hold(start, first)
    for i in range(first, 6):
        z = hold(step(z, i, hold), i + 1)
    torch.testing.assert_close(found, z, atol=1e-10, rtol=1e-10)
