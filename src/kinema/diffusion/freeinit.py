"""FreeInit (Wu et al. 2023, arXiv 2312.07537): resample from noise that contains the clip's low frequencies.

In training even the noisiest level keeps some of the clip; sampling starts from pure noise. FreeInit closes this gap:
it samples a clip, diffuses it to the noise end, and starts the next pass from its low and fresh high frequencies.

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

MIN_SIGNAL = 1e-3
"""Smallest alpha (with alpha² + sigma² = 1) at the noise end for which FreeInit has an effect."""


@dataclass(frozen=True, eq=False)
class FreeInit:
    """Initial noise of the next pass. ``end`` is the schedule's noise end, [1]; ``stop`` as in `low_pass`."""

    end: NoiseLevel
    kind: LowPass = "butterworth"
    order: int = 4
    stop: tuple[float, float] = (0.25, 0.25)

    def __post_init__(self) -> None:
        if float(self._level.alpha) < MIN_SIGNAL:
            raise BadRequest(
                "free_init has no effect with this model, whose schedule leaves nothing of a clip at the noise end; "
                "leave it out"
            )

    @cached_property
    def _level(self) -> NoiseLevel:
        """The noise end in variance-preserving scaling."""
        return variance_preserving(self.end.log_snr)

    def __call__(self, first_BCTHW: Tensor, x0_BCTHW: Tensor, draws: Noise) -> Tensor:
        """Return the next noise from the first pass's noise and the last pass's clip."""
        noised = self._level.add_noise(x0_BCTHW, first_BCTHW)
        mask_THW = low_pass(self.kind, tuple(first_BCTHW.shape[2:]), self.stop, self.order).to(first_BCTHW)
        return mix_frequencies(noised, draws.like(first_BCTHW), mask_THW)


def mix_frequencies(low_BCTHW: Tensor, high_BCTHW: Tensor, mask_THW: Tensor) -> Tensor:
    """Take the frequencies of ``low`` where the mask is 1 and of ``high`` where it is 0."""
    axes = (-3, -2, -1)
    difference = torch.fft.fftn(low_BCTHW - high_BCTHW, dim=axes)
    return high_BCTHW + torch.fft.ifftn(difference * torch.fft.ifftshift(mask_THW), dim=axes).real


def low_pass(kind: LowPass, shape_THW: tuple[int, ...], stop: tuple[float, float], order: int = 4) -> Tensor:
    """Return a low-pass filter, [T, H, W] in [0, 1], float64, with zero frequency in the centre (as after fftshift).

    ``stop`` are the stop frequencies of space (s) and time. d is the distance from the centre in units of the Nyquist
    frequency, with time rescaled so that both stop frequencies are at d = s:

    - butterworth: ``1 / (1 + (d² / s²)^order)``; gaussian: ``exp(-d² / 2s²)``;
    - ideal: 1 where ``d² <= 2s`` (as in the authors' code, not ``s²``);
    - box: 1 in a box around the centre whose half-widths are s of half the rows, the same number of columns, and the
      temporal stop frequency of half the frames.

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


def steps_per_pass(iterations: int, steps: int, *, fast: bool) -> list[int]:
    """Return the steps of each pass; ``fast`` increases them pass by pass (the paper's coarse-to-fine sampling)."""
    if not fast:
        return [steps] * iterations
    return [max(1, steps * (i + 1) // iterations) for i in range(iterations)]
