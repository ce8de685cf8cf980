"""The loss of Open-Sora 1.0 and 1.1: the error of the noise plus the variational bound that teaches the variance.

Nichol & Dhariwal 2021, section 3.1, with the bound unscaled, as their "MSE" loss has it: in bits, with the predicted
mean held constant. Original: GaussianDiffusion.training_losses and _vb_terms_bpd (opensora/schedulers/iddpm).

Letters: B clips, C latent channels, T H W latent frames, rows and columns.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from kinema.diffusion.schedules import NoiseLevel, broadcast
from kinema.families.opensora.first_line.process import BETAS

_STEP = 1 / 255
"""Half the width of the bins in which the bound of the last step counts values."""
_EDGE = 0.999
_LEAST = 1e-12


@cache
def _tables() -> dict[str, Tensor]:
    """By timestep, float64: the posterior's mean as a sum of x0 and z, and the range of the log-variance."""
    kept = BETAS.alphas_cumprod
    before = torch.cat([kept.new_ones(1), kept[:-1]])
    betas = 1 - kept / before
    variance = betas * (1 - before) / (1 - kept)
    return {
        "x0": betas * before.sqrt() / (1 - kept),
        "z": (1 - before) * (1 - betas).sqrt() / (1 - kept),
        "least": torch.cat([variance[1:2], variance[1:]]).log(),  # that of step 0 is none
        "most": betas.log(),
        "alpha": kept.sqrt(),
        "sigma": (1 - kept).sqrt(),
    }


def level(step_B: Tensor) -> NoiseLevel:
    """The level of each timestep, [B]."""
    return NoiseLevel(*(_tables()[name][step_B.cpu()].float() for name in ("alpha", "sigma")))


def loss(output: Tensor, x0: Tensor, z: Tensor, eps: Tensor, step_B: Tensor, generated_B1T11: Tensor) -> Tensor:  # noqa: PLR0917
    """The loss of each clip over its generated frames, [B]; ``output`` is noise and variance, B×2C×T×H×W."""
    noise, v = output.chunk(2, 1)
    at = {name: broadcast(table[step_B.cpu()].to(v.dtype), x0) for name, table in _tables().items()}
    squared = _mean((noise - eps).square(), generated_B1T11)
    guess = (z - at["sigma"] * noise.detach()) / at["alpha"]
    log_variance = torch.lerp(at["least"].expand_as(v), at["most"].expand_as(v), (v + 1) / 2)
    mean = at["x0"] * guess + at["z"] * z
    apart = _divergence(at["x0"] * x0 + at["z"] * z, at["least"], mean, log_variance)
    last = _mean(-_log_likelihood(x0, mean, log_variance / 2), generated_B1T11)
    bound = torch.where(step_B.to(x0.device) == 0, last, _mean(apart, generated_B1T11))
    return squared + bound / math.log(2)


def _mean(values: Tensor, generated_B1T11: Tensor) -> Tensor:
    counted = generated_B1T11.to(values).expand_as(values).flatten(1)
    return (values.flatten(1) * counted).sum(1) / counted.sum(1).clamp_min(1)


def _divergence(mean: Tensor, log_variance: Tensor, other: Tensor, other_log_variance: Tensor) -> Tensor:
    """Of one normal distribution from another (Kullback–Leibler), in nats."""
    ratio = (log_variance - other_log_variance).exp()
    return (ratio - 1 + other_log_variance - log_variance + (mean - other).square() * (-other_log_variance).exp()) / 2


def _log_likelihood(x: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Of the bin of width 2/255 around each value, in nats; the outer bins reach to infinity."""
    away, scale = x - mean, (-log_deviation).exp()
    above, below = _cumulative(scale * (away + _STEP)), _cumulative(scale * (away - _STEP))
    inside = (above - below).clamp(min=_LEAST).log()
    high = (1 - below).clamp(min=_LEAST).log()
    low = above.clamp(min=_LEAST).log()
    return torch.where(x < -_EDGE, low, torch.where(x > _EDGE, high, inside))


def _cumulative(x: Tensor) -> Tensor:
    """The normal distribution's function, approximated by a hyperbolic tangent as in the original."""
    return (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
