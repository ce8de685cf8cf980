"""Open-Sora 2.0's process: a rectified flow shifted by the number of tokens, and guidance in three branches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kinema.diffusion.guidance import Difference, Guidance, Scale, oscillating
from kinema.diffusion.parameterise import FlowPrediction
from kinema.diffusion.schedules import NoiseLevel, RectifiedFlow
from kinema.schema import Request

FEW, MANY = (256, 1.0), (4096, 3.0)
"""Tokens of a frame and the shift there; linear between and beyond."""
SIGMA_MIN = 1e-5


def shift(tokens: int, frames: int) -> float:
    """The flow's shift for this number of tokens a frame and of latent frames (section 4.3 of the report)."""
    (few, low), (many, high) = FEW, MANY
    return (low + (tokens - few) * (high - low) / (many - few)) * math.sqrt(frames)


def flow(tokens: int, frames: int) -> RectifiedFlow:
    """The schedule for this number of tokens per frame and of latent frames."""
    return RectifiedFlow(shift(tokens, frames))


@dataclass(frozen=True)
class Velocity(FlowPrediction):
    """``(1 - sigma_min) eps - x0``, the target of training; in sampling ``sigma_min`` is left out, as published."""

    sigma_min: float = SIGMA_MIN

    def target(self, x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:  # noqa: ARG002
        return (1 - self.sigma_min) * eps - x0


VELOCITY = Velocity()


def guidance(  # noqa: PLR0917
    scale: float | Tensor,
    image: Scale,
    rescale: float,
    interval: tuple[float, float] | None,
    *,
    oscillate: bool,
) -> Guidance:
    """``blank + g_img (negative - blank) + g_txt (positive - negative)``; ``blank`` has no given frames."""
    text = oscillating(scale) if oscillate else scale
    return Guidance(
        "blank",
        (Difference("negative", "blank", image), Difference("positive", "negative", text)),
        rescale,
        "positive",
        interval,
    )


def is_unguided(scale: float | Tensor, request: Request, longest: int | None) -> bool:
    """Whether only the prompt's branch counts: at a text scale of 1 and for clips of which nothing is given.

    Frames are given by the task, or by the block before one of a clip of more than ``longest`` frames.
    """
    in_blocks = longest is not None and request.shape.frames > longest and request.window is None
    given = request.task not in ("generate", "edit") or in_blocks
    return not given and bool((torch.as_tensor(scale) == 1).all())


def image_scale(scale: float, frames: int, steps: int, *, oscillate: bool, dynamic: bool) -> Scale:
    """The scale of image guidance by step and latent frame.

    ``dynamic``: from 1 at the first frame to a limit at the last, which falls from ``scale`` to 1 over the steps; as
    published it acts on scales above 1 alone. ``oscillate``: 1 at every odd step from the tenth on.
    """
    limits = torch.linspace(scale, 1.0, steps + 1)

    def of(step: int, level: NoiseLevel) -> float | Tensor:
        now = oscillating(scale)(step, level) if oscillate else scale  # type: ignore[operator]
        return torch.linspace(1.0, float(limits[step]), frames) if dynamic and float(now) > 1 else now

    return of if oscillate or dynamic else scale
