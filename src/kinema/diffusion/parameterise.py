"""Parameterisations: what a network predicts, its preconditioning and its training target.

Every parameterisation is ``x0 = c_skip * z + c_out * network(c_in * z)``. The scalings hold for any common scale of
(alpha, sigma), so that a network trained variance preserving also runs on variance-exploding or flow levels of the same
log-SNR. Shapes: z, x0, eps, output BCTHW; level [B], or [B, T] for a level per frame.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kinema.diffusion.schedules import NoiseLevel, broadcast
from kinema.schema import BadRequest

Denoiser = Callable[[Tensor, NoiseLevel], Tensor]
"""``denoise(z_BCTHW, level) -> x0_BCTHW``; level has one entry per batch item, or per item and frame.

A denoiser may return further channels after those of x0 (the learned variance of `samplers.iddpm`), which the wrappers
of x0 hand on; see `of_x0`.
"""

Scalings = tuple[Tensor, Tensor, Tensor]
Weighting = Callable[[NoiseLevel], Tensor] | None
"""Weight w in ``w * |x0_hat - x0|²`` as a function of the level, of its shape; None: weight 1 on the network's own
prediction."""


def eps_from_x0(x0: Tensor, z: Tensor, level: NoiseLevel) -> Tensor:
    """Return the noise in z given x0, ``(z - alpha x0) / sigma``; zero where sigma is 0."""
    alpha, sigma = level.like(z)
    clean = sigma == 0
    return ((z - alpha * x0) / sigma.masked_fill(clean, 1)).masked_fill(clean, 0)


def of_x0(change: Callable[[Tensor], Tensor], output: Tensor, z: Tensor) -> Tensor:
    """Apply ``change`` to x0, the first channels of a denoiser's output, as many as z has; the others stay."""
    x0, *further = output.split([z.shape[1], output.shape[1] - z.shape[1]], 1)
    return change(x0) if not further[0].numel() else torch.cat([change(x0), *further], 1)


class Parameterisation(ABC):
    """Scalings and target of one kind of prediction, from which x0 and the loss follow."""

    @abstractmethod
    def scalings(self, level: NoiseLevel) -> Scalings:
        """(c_skip, c_out, c_in), each of the level's shape."""

    @abstractmethod
    def target(self, x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
        """The network's training target for ``z = alpha x0 + sigma eps``."""

    def x0(self, output: Tensor, z: Tensor, level: NoiseLevel) -> Tensor:
        """The estimate of x0 from a raw network output."""
        c_skip, c_out, _ = self.scalings(level)
        return broadcast(c_skip, z) * z + broadcast(c_out, z) * output

    def denoiser(self, network: Callable[[Tensor, NoiseLevel], Tensor]) -> Denoiser:
        """Wrap ``network(scaled_input, level) -> output`` as a denoiser."""

        def denoise(z: Tensor, level: NoiseLevel) -> Tensor:
            c_skip, c_out, c_in = self.scalings(level)
            return broadcast(c_skip, z) * z + broadcast(c_out, z) * network(broadcast(c_in, z) * z, level)

        return denoise

    def eps_from_x0(self, x0: Tensor, z: Tensor, level: NoiseLevel) -> Tensor:
        """The module's `eps_from_x0`; the same for every parameterisation."""
        return eps_from_x0(x0, z, level)

    def loss(  # noqa: PLR0917
        self,
        output: Tensor,
        x0: Tensor,
        eps: Tensor,
        level: NoiseLevel,
        weighting: Weighting = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the weighted mean squared error of a raw output, [B].

        ``weighting`` applies in x0-space: the loss is ``w(level) * mean |x0_hat - x0|²``, computed as the equal
        ``w c_out² * mean |output - target|²``. None: the unweighted mean of the network's own prediction. ``mask``
        (broadcastable to x0) restricts the mean to values where it is 1. With a level per frame, frames are weighted
        before the mean.
        """
        error = (output.to(x0.dtype) - self.target(x0, eps, level)).square()
        weight = None if weighting is None else weighting(level) * self.scalings(level)[1].square()
        if weight is not None and level.per_frame:
            error, weight = error * broadcast(weight, error), None
        if mask is None:
            mean = error.flatten(1).mean(1)
        else:
            counted = mask.to(error).expand_as(error).flatten(1)
            mean = (error.flatten(1) * counted).sum(1) / counted.sum(1).clamp_min(1)
        return mean if weight is None else mean * weight.to(mean)


@dataclass(frozen=True)
class EpsPrediction(Parameterisation):
    """The network predicts the noise (Ho et al. 2020); x0 is undefined where alpha is 0."""

    def scalings(self, level: NoiseLevel) -> Scalings:
        alpha, sigma = level.alpha, level.sigma
        if bool((alpha == 0).any()):
            raise BadRequest("a noise-predicting model cannot start at pure noise (alpha 0); choose other noise levels")
        return 1 / alpha, -sigma / alpha, 1 / torch.hypot(alpha, sigma)

    def target(self, x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:  # noqa: ARG002
        return eps


@dataclass(frozen=True)
class VPrediction(Parameterisation):
    """The network predicts ``v = alpha eps - sigma x0`` at unit scale (Salimans & Ho 2022); SVD's is alpha = 1."""

    def scalings(self, level: NoiseLevel) -> Scalings:
        norm = torch.hypot(level.alpha, level.sigma)
        return level.alpha / norm.square(), -level.sigma / norm, 1 / norm

    def target(self, x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
        norm = torch.hypot(level.alpha, level.sigma)
        return broadcast(level.alpha / norm, x0) * eps - broadcast(level.sigma / norm, x0) * x0


@dataclass(frozen=True)
class X0Prediction(Parameterisation):
    """The network predicts the clean video."""

    def scalings(self, level: NoiseLevel) -> Scalings:
        alpha, sigma = level.alpha, level.sigma
        return torch.zeros_like(alpha), torch.ones_like(alpha), 1 / torch.hypot(alpha, sigma)

    def target(self, x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:  # noqa: ARG002
        return x0


@dataclass(frozen=True)
class FlowPrediction(Parameterisation):
    """The network predicts the velocity ``eps - x0`` of the straight path (Liu et al. 2022)."""

    def scalings(self, level: NoiseLevel) -> Scalings:
        total = level.alpha + level.sigma
        return 1 / total, -level.sigma / total, 1 / total

    def target(self, x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:  # noqa: ARG002
        return eps - x0


@dataclass(frozen=True)
class EDM(Parameterisation):
    """EDM's preconditioning (Karras et al. 2022, table 1); its network also takes ``c_noise = -log_snr / 8``."""

    sigma_data: float = 0.5

    def scalings(self, level: NoiseLevel) -> Scalings:
        signal, sigma = level.alpha * self.sigma_data, level.sigma
        norm = torch.hypot(signal, sigma)
        return signal * self.sigma_data / norm.square(), sigma * self.sigma_data / norm, 1 / norm

    def target(self, x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
        # (x0 - c_skip z) / c_out with sigma cancelled, so that sigma may be 0.
        signal = level.alpha * self.sigma_data
        norm = torch.hypot(signal, level.sigma)
        return broadcast(level.sigma / (norm * self.sigma_data), x0) * x0 - broadcast(signal / norm, x0) * eps


EPS = EpsPrediction()
V = VPrediction()
X0 = X0Prediction()
FLOW = FlowPrediction()
