"""Guidance as composable wrappers: each takes denoisers and is itself a denoiser.

Order from the inside out: `Guided` (with rescale), `CleanFrames`, `Reconstruction`, `Thresholded`, windows, overwriting
of known regions. Shapes: z and x0 BCTHW; held B1THW (or broadcastable), 1 where the video is given; level [B], or
[B, T] per frame.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from kinema.diffusion.parameterise import Denoiser, of_x0
from kinema.diffusion.schedules import NoiseLevel, broadcast
from kinema.schema import BadRequest

Scale = float | Tensor | Callable[[int, NoiseLevel], float | Tensor]
"""A scalar; a scale per frame, [T]; or a function of the step (from 0) and its level that returns either."""


@dataclass(frozen=True)
class Difference:
    """A guidance term ``scale * (of - over)`` between two named branches."""

    of: str
    over: str
    scale: Scale


@dataclass(frozen=True)
class Guidance:
    """``base + Σ scale_k (of_k - over_k)`` over named branches, evaluated in this order.

    x0 is affine in every other prediction at a given z and level, so guiding x0 is the same as guiding eps, v or the
    flow. Branches that do not contribute at a step are not computed: those of a difference with scale 0, and the base
    if a scale of 1 replaces it, ``base + 1 (of - base) = of``.

    rescale: in [0, 1], how far each item's standard deviation is pulled back to that of ``reference`` (Lin et al. 2023,
    eq. 15 and 16, here on x0). The default reference is the first difference's ``of``. ``rescaled`` "flow" does it on
    the velocity of a rectified flow instead (Open-Sora 1.3's guidance-flaw fix).
    interval: log-SNR range, inclusive, in which guidance is applied (Kynkäänniemi et al. 2024); outside it all scales
    are 1. None: everywhere.
    channels: how many of the first channels are guided; the others are the reference's (Open-Sora 1.0 guides three of
    four). None: all.
    """

    base: str
    differences: tuple[Difference, ...] = ()
    rescale: float = 0.0
    reference: str = ""
    interval: tuple[float, float] | None = None
    channels: int | None = None
    rescaled: Literal["x0", "flow"] = "x0"

    @property
    def branches(self) -> tuple[str, ...]:
        """Every branch that may contribute at some step."""
        ends = [name for each in self.differences if not _is(each.scale, 0) for name in (each.of, each.over)]
        names = dict.fromkeys(
            [self.base, *ends, *([self.reference] if self.channels is not None and self.reference else [])]
        )
        if len(self.differences) == 1 and _is(self.differences[0].scale, 1) and self.base == self.differences[0].over:
            return (self.differences[0].of,)
        return tuple(names)

    def merged(self, branches: Mapping[str, object]) -> Guidance:
        """The same sum where several names stand for one condition: its first name is used, and differences between
        equal branches vanish. So Open-Sora's three branches are two, exactly, for a clip of which nothing is given.
        """
        first = {name: next(other for other in branches if branches[other] is branches[name]) for name in branches}
        renamed = [replace(each, of=first[each.of], over=first[each.over]) for each in self.differences]
        return replace(
            self,
            base=first[self.base],
            differences=tuple(each for each in renamed if each.of != each.over),
            reference=first[self.reference] if self.reference else "",
        )

    def of(self, frames: Sequence[int] | None) -> Guidance:
        """Select the scales of these frames, for windows and blocks of frames.

        Frames past the clip's end use the last scale.
        """
        if frames is None:
            return self

        def cut(scale: Scale) -> Scale:
            if callable(scale):
                return lambda step, level: _frames(scale(step, level), frames)
            return _frames(scale, frames)

        return replace(self, differences=tuple(replace(each, scale=cut(each.scale)) for each in self.differences))


def classifier_free(scale: Scale, rescale: float = 0.0, interval: tuple[float, float] | None = None) -> Guidance:
    """``negative + scale (positive - negative)`` (Ho & Salimans 2022); scale is VDM's 1 + w, and 1 is unguided."""
    return Guidance("negative", (Difference("positive", "negative", scale),), rescale, "positive", interval)


def oscillating(scale: float | Tensor, first: int = 10) -> Scale:
    """Open-Sora's oscillating guidance: odd steps from step ``first`` on have scale 1 (g×11, 1, g, 1, … for 10)."""
    return lambda step, _level: 1.0 if step >= first and step % 2 else scale


Evaluate = Callable[[Mapping[str, Denoiser], Sequence[str], Tensor, NoiseLevel], dict[str, Tensor]]
"""Calls the named denoisers at a level: ``(denoisers, names, z, level) -> x0 by name``."""


def one_by_one(
    branches: Mapping[str, Denoiser], names: Sequence[str], z: Tensor, level: NoiseLevel
) -> dict[str, Tensor]:
    return {name: branches[name](z, level) for name in names}


def in_parallel(
    branches: Mapping[str, Denoiser], names: Sequence[str], z: Tensor, level: NoiseLevel
) -> dict[str, Tensor]:
    """Two branches at the same time, each on half of the CPU's threads; others one by one. See `run_in_parallel`."""
    if len(names) != 2:
        return one_by_one(branches, names, z, level)
    first, second = (branches[name] for name in names)
    x0s = run_in_parallel(lambda: first(z, level), lambda: second(z, level))
    return dict(zip(names, x0s, strict=True))


@dataclass(frozen=True, eq=False)
class InOneBatch:
    """All branches of a single clip in one call, which reads the network's weights once.

    ``joined`` returns the denoiser of the named branches' batch, or None if they have none. Without one, for several
    clips and where a gradient is recorded, whose memory would double, ``otherwise`` evaluates the branches.
    """

    joined: Callable[[tuple[str, ...]], Denoiser | None]
    otherwise: Evaluate

    def __call__(
        self, branches: Mapping[str, Denoiser], names: Sequence[str], z: Tensor, level: NoiseLevel
    ) -> dict[str, Tensor]:
        single = len(names) > 1 and len(z) == 1 and not torch.is_grad_enabled()
        denoise = self.joined(tuple(names)) if single else None
        if denoise is None:
            return self.otherwise(branches, names, z, level)
        x0 = denoise(z.expand(len(names), *z.shape[1:]), level.batch(len(names)))
        return dict(zip(names, x0.split(1), strict=True))


def run_in_parallel(first: Callable[[], Tensor], second: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Run two functions at the same time, each on half of PyTorch's threads.

    Threads that share an operation synchronise at its end, thousands of times per step; two computations on half of the
    threads each synchronise only once. Runs them sequentially if gradients are recorded or autocast is on, as these are
    thread-local, or if the number of threads is odd.
    """
    threads = torch.get_num_threads()
    if threads % 2 or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return first(), second()
    without_grad = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad
    future: Future[Tensor] = Future()

    def run_second() -> None:
        torch.set_num_threads(threads // 2)  # PyTorch's thread count is per calling thread
        try:
            with without_grad():
                future.set_result(second())
        except BaseException as error:  # re-raised in the caller
            future.set_exception(error)

    other = threading.Thread(target=run_second, name="guidance")
    try:
        torch.set_num_threads(threads // 2)
        other.start()
        return first(), future.result()
    finally:
        if other.is_alive():  # false if start() was interrupted; the interpreter then waits at exit
            other.join()  # even when interrupted: exiting while a thread computes aborts the process
        torch.set_num_threads(threads)


@dataclass(frozen=True, eq=False)
class Guided:
    """Combines the branches' denoisers according to a `Guidance`.

    ``evaluate`` calls those that contribute: `one_by_one`, `in_parallel` or `InOneBatch`. ``levels`` are the run's
    levels, from which scales that depend on the step find its index.
    """

    branches: Mapping[str, Denoiser]
    guidance: Guidance
    evaluate: Evaluate = one_by_one
    levels: NoiseLevel | None = None

    def __call__(self, z: Tensor, level: NoiseLevel) -> Tensor:
        base, terms = self._contributing(z, level if level.state is None else level.state)
        names = list(dict.fromkeys([*(n for each, _ in terms for n in (each.of, each.over)), base]))
        rescale, channels = self.guidance.rescale if terms else 0.0, self.guidance.channels
        reference = self.guidance.reference or (terms[0][0].of if terms else base)
        if (rescale or channels is not None) and reference not in names:
            names.append(reference)
        x0 = self.evaluate(self.branches, names, z, level)
        guided = x0[base]
        for each, scale in terms:
            guided = guided + scale * (x0[each.of] - x0[each.over])
        if channels is not None:
            guided = torch.cat([guided[:, :channels], x0[reference][:, channels:]], 1)
        if not rescale:
            return guided
        # For a flow, z - x0 is sigma times the velocity.
        origin, cond = z if self.guidance.rescaled == "flow" else z.new_zeros(()), x0[reference][:, : z.shape[1]]
        return of_x0(lambda own: origin + _match_contrast(own - origin, cond - origin, rescale), guided, z)

    def _contributing(self, z: Tensor, level: NoiseLevel) -> tuple[str, list[tuple[Difference, Tensor]]]:
        """The base and the differences that contribute at this level, with scales broadcastable to z."""
        low, high = self.guidance.interval or (-math.inf, math.inf)
        inside = (level.log_snr >= low) & (level.log_snr <= high)
        base, step = self.guidance.base, self._step(level)
        terms: list[tuple[Difference, Tensor]] = []
        for each in self.guidance.differences:
            scale = torch.as_tensor(each.scale(step, level) if callable(each.scale) else each.scale)
            if bool((scale == 1).all()) or not bool(inside.any()):
                if each.over == base and not terms:
                    base = each.of
                    continue
                scale = torch.ones(())
            elif bool((scale == 0).all()) and bool(inside.all()):
                continue
            terms.append((each, self._broadcast(scale, inside, z)))
        return base, terms

    def _broadcast(self, scale: Tensor, inside: Tensor, z: Tensor) -> Tensor:
        if scale.ndim == 1:
            if len(scale) != z.shape[2]:
                raise BadRequest(f"guidance has {len(scale)} scales; expected one per frame, {z.shape[2]}")
            scale = scale.reshape(1, 1, -1, 1, 1)
        return torch.where(broadcast(inside, z) > 0, scale.to(z), 1)

    def _step(self, level: NoiseLevel) -> int:
        """The index of the step from this level, or from the next noisier one for intermediate levels."""
        if self.levels is None:
            return 0
        return max(int((self.levels.log_snr <= level.log_snr.min().to(self.levels.log_snr)).sum()) - 1, 0)


def _is(scale: Scale, value: float) -> bool:
    return not callable(scale) and bool((torch.as_tensor(scale) == value).all())


def _frames(scale: float | Tensor, frames: Sequence[int]) -> float | Tensor:
    if not isinstance(scale, Tensor) or scale.ndim == 0:
        return scale
    return scale[torch.as_tensor(list(frames)).clamp_max(len(scale) - 1)]


def _match_contrast(guided: Tensor, cond: Tensor, amount: float) -> Tensor:
    std = broadcast(cond.flatten(1).std(1), guided) / broadcast(guided.flatten(1).std(1), guided).clamp_min(1e-8)
    return guided * (1 + amount * (std - 1))


@dataclass(frozen=True)
class Thresholded:
    """x0 clipped to [-limit, limit]; with ``quantile`` < 1, dynamic thresholding (Saharia et al. 2022).

    Dynamic: each item is clipped at the quantile of |x0| (at least ``limit``), then scaled to the limit.
    """

    denoise: Denoiser
    limit: float = 1.0
    quantile: float = 1.0

    def __call__(self, z: Tensor, level: NoiseLevel) -> Tensor:
        x0 = self.denoise(z, level)
        if self.quantile >= 1:
            return x0.clamp(-self.limit, self.limit)
        size = x0.abs().flatten(1).sort(dim=1).values
        index = min(int(self.quantile * size.shape[1]), size.shape[1] - 1)
        bound = broadcast(size[:, index], x0).clamp_min(self.limit)
        return x0.clamp(-bound, bound) * (self.limit / bound)


@dataclass(frozen=True, eq=False)
class Measurement:
    """A measurement of the clip, ``operator(x0) = target``, with its guidance weight.

    The operator is differentiable and takes x0 BCTHW in float32 or wider; the target has the shape of its result.
    """

    operator: Callable[[Tensor], Tensor]
    target: Tensor
    weight: float

    @staticmethod
    def of_piece(content: Tensor, mask: Tensor, weight: float) -> Measurement:
        """The measurement of given pixels, ``mask x0 = mask content``; mask B1THW, 1 where they are given."""
        return Measurement(lambda x0: mask.to(x0) * x0, mask.to(content) * content, weight)

    def error(self, x0: Tensor) -> Tensor:
        """``|target - operator(x0)|²``, summed over the batch."""
        measured = self.operator(x0)
        if measured.shape != self.target.shape:
            shape, expected = tuple(self.target.shape), tuple(measured.shape)
            raise BadRequest(f"the target of a measurement has shape {shape}; expected its operator's {expected}")
        return (self.target.to(x0) - measured).square().sum()


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Reconstruction guidance (VDM, section 3.1): adjusts unknown pixels so that x0 agrees with the measurements.

    ``x0 - (alpha / 2) grad_z Σ weight_k |target_k - operator_k(x0)|²``, on pixels where ``held`` is 0 (everywhere
    without it). Given frames and a low-resolution clip are both measurements. Those with weight 0 are skipped, and
    without any the denoiser is unchanged.

    Use it together with overwriting of the held pixels (`kinema.diffusion.overwrite`), as in VDM. Each call
    differentiates the denoiser once, even under no_grad; tensors of the denoiser and the operators must not be
    inference tensors.
    """

    denoise: Denoiser
    measurements: Sequence[Measurement]
    held: Tensor | None = None

    def __call__(self, z: Tensor, level: NoiseLevel) -> Tensor:
        weighted = [each for each in self.measurements if each.weight]
        if not weighted:
            return self.denoise(z, level)
        # The loss uses relative weights, so that a large weight does not overflow the gradient of an fp16 network.
        weight = max(abs(each.weight) for each in weighted)
        with torch.inference_mode(False), torch.enable_grad():
            z_in = z.detach().clone().requires_grad_(True)
            output = self.denoise(z_in, level)
            x0 = output[:, : z.shape[1]]
            wide = x0.to(torch.promote_types(x0.dtype, torch.float32))  # a sum over a clip overflows fp16
            loss = sum((each.weight / weight * each.error(wide) for each in weighted), start=wide.new_zeros(()))
            (grad,) = torch.autograd.grad(loss, z_in)
        if self.held is not None:
            grad = grad * (1 - self.held.to(grad))
        return of_x0(lambda own: own - weight / 2 * level.like(z)[0] * grad, output.detach(), z)
