"""Guidance: wrappers around a denoiser that are denoisers again, so that they compose.

Order from the inside out: `ClassifierFree`, `Thresholded`, `Reconstruction`, `Replacement`, windows.
Shapes: z, x0 and given BCTHW; mask B1THW (or broadcastable), 1 where the video is given; level [B].
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from kinema.diffusion.noise import Noise
from kinema.diffusion.parameterise import Denoiser, over
from kinema.diffusion.samplers import posterior
from kinema.diffusion.schedules import Level
from kinema.schema import BadRequest

Scale = float | Tensor | Callable[[Level], float | Tensor]


@dataclass(frozen=True)
class ClassifierFree:
    """``x0 = null + scale * (cond - null)`` (Ho & Salimans 2022). scale = 1 + w of VDM: 1 is unguided.

    x0 is affine in any other prediction at one z and level, so guiding x0 guides eps, v or the flow alike.
    A negative prompt is simply another ``null``, which is not called where the scale is 1 everywhere.

    scale: a number; one per frame, [T]; or a function of the level (a schedule over the steps) giving either.
    rescale: 0..1, how far each item's standard deviation is pulled back to cond's (Lin et al. 2023, eq. 15
    and 16, here on x0).
    interval: log-SNR range, ends included, in which guidance acts (Kynkäänniemi et al. 2024), None
        for all of it; cond alone outside.
    at_once: both halves at the same time, each on half of the processor's cores; see `both`.
    """

    cond: Denoiser
    null: Denoiser
    scale: Scale
    rescale: float = 0.0
    interval: tuple[float, float] | None = None
    at_once: bool = False

    def __call__(self, z: Tensor, level: Level) -> Tensor:
        scale = self._scale(z, level)
        if scale is None:
            return self.cond(z, level)
        if self.at_once:
            cond, null = both(lambda: self.cond(z, level), lambda: self.null(z, level))
        else:
            cond, null = self.cond(z, level), self.null(z, level)
        guided = null + scale * (cond - null)
        if self.rescale:
            guided = _match_contrast(guided, cond, self.rescale)
        return guided

    def _scale(self, z: Tensor, level: Level) -> Tensor | None:
        """The scale, broadcastable to z; None where it is 1 throughout."""
        low, high = self.interval or (-math.inf, math.inf)
        inside = (level.log_snr >= low) & (level.log_snr <= high)
        if not bool(inside.any()):
            return None
        told = self.scale(level) if callable(self.scale) else self.scale
        scale = torch.as_tensor(told)
        if bool((scale == 1).all()):
            return None
        if scale.ndim == 1:
            if len(scale) != z.shape[2]:
                raise BadRequest(f"guidance has {len(scale)} scales; expected one per frame, {z.shape[2]}")
            scale = scale.reshape(1, 1, -1, 1, 1)
        return torch.where(over(inside, z) > 0, scale.to(z), 1)


def both(first: Callable[[], Tensor], second: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Two results, made at the same time on half of PyTorch's threads each, where the caller loses nothing by it.

    Threads that share an operation wait for each other at its end, thousands of times in a step; two computations of
    the same kind, each with half of the threads, wait once. One after the other where gradients are recorded or
    autocast is on, which a thread has for itself, or where there are not two equal halves.
    """
    threads = torch.get_num_threads()
    if threads % 2 or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return first(), second()
    quiet = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad
    later: Future[Tensor] = Future()

    def aside() -> None:
        torch.set_num_threads(threads // 2)  # a thread that has computed before keeps its own number
        try:
            with quiet():
                later.set_result(second())
        except BaseException as error:  # the caller's to see
            later.set_exception(error)

    other = threading.Thread(target=aside, name="guidance")
    try:
        torch.set_num_threads(threads // 2)
        other.start()
        return first(), later.result()
    finally:
        if other.is_alive():  # not where an interrupt came while it was started: that one is waited for at exit
            other.join()  # also when interrupted: a process that ends while a thread computes is aborted
        torch.set_num_threads(threads)


def _match_contrast(guided: Tensor, cond: Tensor, amount: float) -> Tensor:
    std = over(cond.flatten(1).std(1), guided) / over(guided.flatten(1).std(1), guided).clamp_min(1e-8)
    return guided * (1 + amount * (std - 1))


@dataclass(frozen=True)
class Thresholded:
    """x0 clipped to [-limit, limit]; with ``quantile`` < 1, dynamic thresholding (Saharia et al. 2022).

    Dynamic: each item is clipped at the quantile of |x0| (at least ``limit``) and scaled back to the limit.
    """

    denoise: Denoiser
    limit: float = 1.0
    quantile: float = 1.0

    def __call__(self, z: Tensor, level: Level) -> Tensor:
        x0 = self.denoise(z, level)
        if self.quantile >= 1:
            return x0.clamp(-self.limit, self.limit)
        size = x0.abs().flatten(1).sort(dim=1).values
        index = min(int(self.quantile * size.shape[1]), size.shape[1] - 1)
        bound = over(size[:, index], x0).clamp_min(self.limit)
        return x0.clamp(-bound, bound) * (self.limit / bound)


@dataclass
class Replacement:
    """Given pixels held by overwriting them in z before the network sees it (VDM, section 3.1).

    ``marginal`` draws them from q(z_s | given) afresh at each call; ``conditional`` from q(z_s | given, z_t),
    where z_t is what they were at the call before (the first call is marginal). The x0 returned has the
    given pixels in place, so the finished clip holds them exactly. ``conditional`` remembers one sampling
    run: make a new wrapper for the next.
    """

    denoise: Denoiser
    given: Tensor
    mask: Tensor
    noise: Noise
    variant: Literal["marginal", "conditional"] = "marginal"
    _before: tuple[Tensor, Level] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.variant not in ("marginal", "conditional"):
            raise BadRequest(f"replacement variant is {self.variant!r}; expected 'marginal' or 'conditional'")

    def __call__(self, z: Tensor, level: Level) -> Tensor:
        given, mask = self.given.to(z), self.mask.to(z)
        known = self._draw(z, given, level)
        self._before = known, level
        x0 = self.denoise(torch.lerp(z, known, mask.expand_as(z)), level)
        return torch.lerp(x0, given, mask.expand_as(x0))

    def _draw(self, z: Tensor, given: Tensor, level: Level) -> Tensor:
        if self.variant == "conditional" and self._before is not None:
            known, before = self._before
            gain = level.log_snr - before.log_snr
            if bool((gain == 0).all()):  # a second look at the same level (Heun, Langevin)
                return known
            if bool((gain > 0).all()):
                mean, variance, _ = posterior(known, given, before, level)
                return mean + variance.sqrt() * self.noise.like(z)
        return level.add_noise(given, self.noise.like(z))


@dataclass(frozen=True)
class Reconstruction:
    """Reconstruction guidance (VDM, section 3.1): unknown pixels move so that known ones come out right.

    ``x0 - (weight * alpha / 2) grad_z loss``, on the pixels not given (on all where no mask is), with
    ``loss = |mask (given - x0)|² + |low - downsample(x0)|²``, either part alone or both: ``given`` and ``mask``
    for extension and in-between frames, ``low`` and ``downsample`` for spatial super-resolution.

    Meant on top of replacement: ``Replacement(Reconstruction(denoise, given, mask, w), given, mask, noise)``; with
    weight 0 that is replacement alone. The denoiser is differentiated once a call, also under no_grad; its weights
    and conditioning must not have been made under inference_mode.
    """

    denoise: Denoiser
    given: Tensor | None = None
    mask: Tensor | None = None
    weight: float = 1.0
    downsample: Callable[[Tensor], Tensor] | None = None
    low: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.given is None) != (self.mask is None) or (self.low is None) != (self.downsample is None):
            raise BadRequest("reconstruction guidance takes given with mask, and low with downsample")
        if self.given is None and self.low is None:
            raise BadRequest("reconstruction guidance needs something known: given with mask, or low with downsample")

    def __call__(self, z: Tensor, level: Level) -> Tensor:
        if self.weight == 0:
            return self.denoise(z, level)
        with torch.inference_mode(False), torch.enable_grad():
            z_in = z.detach().clone().requires_grad_(True)
            x0 = self.denoise(z_in, level)
            (grad,) = torch.autograd.grad(self._loss(x0), z_in)
        if self.mask is not None:
            grad = grad * (1 - self.mask.to(grad))
        return x0.detach() - self.weight / 2 * level.like(z)[0] * grad

    def _loss(self, x0: Tensor) -> Tensor:
        x0 = x0.to(torch.promote_types(x0.dtype, torch.float32))  # a sum over a clip overflows fp16
        loss = x0.new_zeros(())
        if self.given is not None and self.mask is not None:
            loss = loss + (self.mask.to(x0) * (self.given.to(x0) - x0)).square().sum()
        if self.low is not None and self.downsample is not None:
            loss = loss + (self.low.to(x0) - self.downsample(x0)).square().sum()
        return loss
