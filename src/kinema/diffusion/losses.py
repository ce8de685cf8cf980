"""Loss weightings, and distributions of training noise levels.

Weightings apply in x0-space: w(level) multiplies |x0_hat - x0|² (see `Parameterisation.loss`). An unweighted
noise-prediction loss is w = SNR.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Generator, Tensor

from kinema.diffusion.parameterise import Weighting
from kinema.diffusion.schedules import NoiseLevel, Schedule
from kinema.schema import BadRequest

# ------------------------------------------------------------------------------------ weightings

UNIFORM: Weighting = None
"""Unweighted mean squared error of the network's own prediction."""


def snr(level: NoiseLevel) -> Tensor:
    """w = SNR, [B]: equal to an unweighted noise-prediction loss."""
    return level.log_snr.exp()


def truncated_snr(level: NoiseLevel) -> Tensor:
    """w = max(SNR, 1), [B] (Salimans & Ho 2022, section 4)."""
    return level.log_snr.exp().clamp_min(1)


def min_snr(gamma: float = 5.0) -> Callable[[NoiseLevel], Tensor]:
    """w = min(SNR, gamma) (Hang et al. 2023, for x0-prediction)."""
    return lambda level: level.log_snr.exp().clamp_max(gamma)


def sigmoid(bias: float = 0.0) -> Callable[[NoiseLevel], Tensor]:
    """w = SNR * sigmoid(bias - log SNR) (Kingma & Gao 2023, where sigmoid(bias - log SNR) weights the noise)."""
    # SNR * sigmoid(b - l) = e^b * sigmoid(l - b), which cannot overflow.
    return lambda level: torch.sigmoid(level.log_snr - bias) * torch.exp(torch.as_tensor(bias))


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "uniform": lambda: UNIFORM,
    "snr": lambda: snr,
    "truncated-snr": lambda: truncated_snr,
    "min-snr": min_snr,
    "sigmoid": sigmoid,
}
"""Weightings by name: ``WEIGHTINGS["min-snr"](gamma=5.0)``."""


# ---------------------------------------------------------------------------------- noise levels


class DrawLevels(Protocol):
    """Samples ``count`` training levels of a schedule, determined by the generator's state."""

    def __call__(self, schedule: Schedule, count: int, generator: Generator) -> NoiseLevel: ...


def quantiles(count: int, generator: Generator, *, stratified: bool = False) -> Tensor:
    """Sample ``count`` values uniform in (0, 1), float64; stratified: one per each of ``count`` strata, shuffled."""
    u = torch.rand(count, generator=generator, dtype=torch.float64, device=generator.device)
    if stratified:
        u = (torch.randperm(count, generator=generator, device=generator.device) + u) / count
    return u.clamp(1e-9, 1 - 1e-9)


def uniform_levels(schedule: Schedule, count: int, generator: Generator, *, stratified: bool = False) -> NoiseLevel:
    """Sample levels at times uniform in (0, 1), [count]."""
    return schedule.level(quantiles(count, generator, stratified=stratified))


def logit_normal_levels(
    schedule: Schedule,
    count: int,
    generator: Generator,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    stratified: bool = False,
) -> NoiseLevel:
    """Sample levels at times ``sigmoid(mean + std n)``, n ~ N(0, 1), [count] (Esser et al. 2024, section 3.1)."""
    normal = torch.special.ndtri(quantiles(count, generator, stratified=stratified))
    return schedule.level(torch.sigmoid(mean + std * normal))


def edm_lognormal_levels(
    schedule: Schedule,
    count: int,
    generator: Generator,
    *,
    p_mean: float = -1.2,
    p_std: float = 1.2,
    stratified: bool = False,
) -> NoiseLevel:
    """Sample levels with ``ln(sigma / alpha) ~ N(p_mean, p_std²)``, [count] (Karras et al. 2022, table 1)."""
    normal = torch.special.ndtri(quantiles(count, generator, stratified=stratified))
    return schedule.at(-2 * (p_mean + p_std * normal))


_DISTRIBUTIONS: dict[str, Callable[..., NoiseLevel]] = {
    "uniform": uniform_levels,
    "logit-normal": logit_normal_levels,
    "edm-lognormal": edm_lognormal_levels,
}


def draw_levels(name: str, **options: float | bool) -> DrawLevels:
    """Return a level distribution by name: uniform, logit-normal or edm-lognormal. Raises BadRequest for others."""
    if name not in _DISTRIBUTIONS:
        raise BadRequest(f"the distribution of noise levels is {name!r}; expected one of {', '.join(_DISTRIBUTIONS)}")
    return partial(_DISTRIBUTIONS[name], **options)
