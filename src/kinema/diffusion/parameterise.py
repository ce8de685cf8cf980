"""What a network predicts, and the loss that teaches it: one object holds both.

Every parameterisation is ``x0 = c_skip * z + c_out * network(c_in * z)``. The scalings are written for
any common scale of (alpha, sigma), so that a network trained variance preserving also runs on
variance-exploding or flow levels of the same log-SNR. Shapes: z, x0, eps, output BCTHW; level [B], or [B, T] where
each frame has its own.
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
"""``denoise(z_BCTHW, level) -> x0_BCTHW``, level with one entry per batch item, or per item and frame."""

Scalings = tuple[Tensor, Tensor, Tensor]
Weighting = Callable[[NoiseLevel], Tensor] | None
"""Weight w of ``w * |x0_hat - x0|²`` by level, of its shape; None: weight 1 in the network's own space."""


def eps_from_x0(x0: Tensor, z: Tensor, level: NoiseLevel) -> Tensor:
    """The noise that x0 leaves in z, ``(z - alpha x0) / sigma``; zero where sigma is 0."""
    alpha, sigma = level.like(z)
    clean = sigma == 0
    return ((z - alpha * x0) / sigma.masked_fill(clean, 1)).masked_fill(clean, 0)


class Parameterisation(ABC):
    """Scalings and target of one kind of prediction; x0 and the loss follow from them."""

    @abstractmethod
    def scalings(self, level: NoiseLevel) -> Scalings:
        """(c_skip, c_out, c_in), each of the level's shape."""

    @abstractmethod
    def target(self, x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
        """What the raw network should output for ``z = alpha x0 + sigma eps``."""

    def x0(self, output: Tensor, z: Tensor, level: NoiseLevel) -> Tensor:
        """The clean estimate of a raw network output."""
        c_skip, c_out, _ = self.scalings(level)
        return broadcast(c_skip, z) * z + broadcast(c_out, z) * output

    def denoiser(self, network: Callable[[Tensor, NoiseLevel], Tensor]) -> Denoiser:
        """``network(scaled_input, level) -> output`` as a denoiser."""

        def denoise(z: Tensor, level: NoiseLevel) -> Tensor:
            c_skip, c_out, c_in = self.scalings(level)
            return broadcast(c_skip, z) * z + broadcast(c_out, z) * network(broadcast(c_in, z) * z, level)

        return denoise

    def eps_from_x0(self, x0: Tensor, z: Tensor, level: NoiseLevel) -> Tensor:
        """See `eps_from_x0`: the same for every parameterisation."""
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
        """Weighted mean-squared error of a raw output, [B].

        ``weighting`` is in x0-space: the loss is ``w(level) * mean |x0_hat - x0|²``, computed as
        ``w c_out² * mean |output - target|²``, which is the same. Without one it is the plain mean in the
        network's own space. ``mask`` (broadcastable to x0, 1 counts) restricts the mean. At a level per frame the
        mean is that of the weighted frames.
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
    """The network predicts the noise (Ho et al. 2020); it says nothing where alpha is 0."""

    def scalings(self, level: NoiseLevel) -> Scalings:
        alpha, sigma = level.alpha, level.sigma
        if bool((alpha == 0).any()):
            raise BadRequest("a noise-predicting model cannot start at pure noise (alpha 0); choose other levels")
        return 1 / alpha, -sigma / alpha, 1 / torch.hypot(alpha, sigma)

    def target(self, x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:  # noqa: ARG002
        return eps


@dataclass(frozen=True)
class VPrediction(Parameterisation):
    """``v = alpha eps - sigma x0`` at unit scale (Salimans & Ho 2022); at alpha = 1 this is SVD's scaling."""

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
    """Preconditioning of Karras et al. 2022, table 1; the network also takes ``c_noise = -log_snr / 8``."""

    sigma_data: float = 0.5

    def scalings(self, level: NoiseLevel) -> Scalings:
        signal, sigma = level.alpha * self.sigma_data, level.sigma
        norm = torch.hypot(signal, sigma)
        return signal * self.sigma_data / norm.square(), sigma * self.sigma_data / norm, 1 / norm

    def target(self, x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
        # (x0 - c_skip z) / c_out with sigma cancelled, so that it also holds where sigma is 0.
        signal = level.alpha * self.sigma_data
        norm = torch.hypot(signal, level.sigma)
        return broadcast(level.sigma / (norm * self.sigma_data), x0) * x0 - broadcast(signal / norm, x0) * eps


EPS = EpsPrediction()
V = VPrediction()
X0 = X0Prediction()
FLOW = FlowPrediction()
