"""FreeInit (Wu et al. 2023, arXiv 2312.07537): sample again from noise that knows the clip's low frequencies.

A model is trained on clips that are never wholly noise, and is started from noise that is. So a clip is sampled, noised
to the end of the schedule again, and its low frequencies replace those of fresh noise for the next pass.

Letters: B clips, C channels, T frames, H W rows and columns of latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kinema.diffusion.noise import Noise
from kinema.diffusion.schedules import NoiseLevel, variance_preserving
from kinema.schema import BadRequest, LowPass

LEAST_SIGNAL = 1e-3
"""alpha (with alpha² + sigma² = 1) at the noise end below which a clip leaves nothing in its noise."""


@dataclass(frozen=True, eq=False)
class FreeInit:
    """Noise for the next pass. ``end`` is the noise end of the schedule, [1]; ``stop`` are `low_pass`'s frequencies."""

    end: NoiseLevel
    kind: LowPass = "butterworth"
    order: int = 4
    stop: tuple[float, float] = (0.25, 0.25)

    def __post_init__(self) -> None:
        if float(self._level.alpha) < LEAST_SIGNAL:
            raise BadRequest(
                "free_init carries over what is left of a clip at the noise end, and this model's schedule leaves "
                "nothing there: leave it out"
            )

    @cached_property
    def _level(self) -> NoiseLevel:
        """The noise end for noise of unit variance, whatever the schedule's scaling."""
        return variance_preserving(self.end.log_snr)

    def __call__(self, first_BCTHW: Tensor, x0_BCTHW: Tensor, draws: Noise) -> Tensor:
        """From the noise of the first pass and what the last one made."""
        noised = self._level.add_noise(x0_BCTHW, first_BCTHW)
        mask_THW = low_pass(self.kind, tuple(first_BCTHW.shape[2:]), self.stop, self.order).to(first_BCTHW)
        return mixed(noised, draws.like(first_BCTHW), mask_THW)


def mixed(low_BCTHW: Tensor, high_BCTHW: Tensor, mask_THW: Tensor) -> Tensor:
    """The frequencies of ``low`` where the mask is 1 and of ``high`` where it is 0."""
    axes = (-3, -2, -1)
    difference = torch.fft.fftn(low_BCTHW - high_BCTHW, dim=axes)
    return high_BCTHW + torch.fft.ifftn(difference * torch.fft.ifftshift(mask_THW), dim=axes).real


def low_pass(kind: LowPass, shape_THW: tuple[int, ...], stop: tuple[float, float], order: int = 4) -> Tensor:
    """How much of each frequency passes, [T, H, W] in [0, 1], float64; the constant is in the middle, as of fftshift.

    With d² the squared distance from the middle, where 1 is half the sampling rate and time is stretched so that both
    stop frequencies ``stop`` (space s, time) are at d = s:

    - butterworth ``1 / (1 + (d² / s²)^order)``, gaussian ``exp(-d² / 2s²)``;
    - ideal: 1 where ``d² <= 2s``, which is what the authors' code has, and not ``s²``;
    - box: 1 in a block around the middle that reaches ``s`` of the way over rows (and as far over columns) and
      the time's stop over frames.

    A stop frequency of 0 passes nothing.
    """
    (s, t), (frames, rows, columns) = stop, shape_THW
    if s == 0 or t == 0:
        return torch.zeros(shape_THW, dtype=torch.float64)
    if kind == "box":
        return _box(shape_THW, stop)
    along = [2 * torch.arange(size, dtype=torch.float64) / size - 1 for size in (frames, rows, columns)]
    d2 = (s / t * along[0][:, None, None]) ** 2 + along[1][:, None] ** 2 + along[2] ** 2
    if kind == "butterworth":
        return 1 / (1 + (d2 / s**2) ** order)
    if kind == "gaussian":
        return torch.exp(-d2 / (2 * s**2))
    return (d2 <= 2 * s).double()


def _box(shape_THW: tuple[int, ...], stop: tuple[float, float]) -> Tensor:
    frames, rows, columns = shape_THW
    mask = torch.zeros(shape_THW, dtype=torch.float64)
    around = round(rows // 2 * stop[0])
    reach = zip((frames, rows, columns), (round(frames // 2 * stop[1]), around, around), strict=True)
    mask[tuple(slice(max(size // 2 - r, 0), size // 2 + r) for size, r in reach)] = 1
    return mask


def passes(iterations: int, steps: int, *, fast: bool) -> list[int]:
    """Steps of every pass. ``fast``: few at first, all in the last (the paper's coarse-to-fine sampling)."""
    if not fast:
        return [steps] * iterations
    return [max(1, steps * (i + 1) // iterations) for i in range(iterations)]
