"""Guidance: wrappers around a denoiser that are denoisers again, so that they compose.

Order from the inside out: `Guided` (with its rescale), `Reconstruction`, `Thresholded`, windows, overwriting.
Shapes: z and x0 BCTHW; held B1THW (or broadcastable), 1 where the video is given; level [B], or [B, T] per frame.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kinema.diffusion.parameterise import Denoiser
from kinema.diffusion.schedules import NoiseLevel, broadcast
from kinema.schema import BadRequest

Scale = float | Tensor | Callable[[int, NoiseLevel], float | Tensor]
"""A number; one per frame, [T]; or a function of the step (from 0) and its level that gives either."""


@dataclass(frozen=True)
class Difference:
    """``scale * (of - over)`` between two branches, by name."""

    of: str
    over: str
    scale: Scale


@dataclass(frozen=True)
class Guidance:
    """``base + Σ scale_k (of_k - over_k)`` over named branches, in this order.

    x0 is affine in any other prediction at one z and level, so guiding x0 guides eps, v or the flow alike. A branch
    that does not count at a step is not computed: those of a difference whose scale is 0, and the base where a scale
    of 1 puts another branch in its place, ``base + 1 (of - base) = of``.

    rescale: 0..1, how far each item's standard deviation is pulled back to that of ``reference`` (Lin et al. 2023,
    eq. 15 and 16, here on x0); the reference is the first difference's ``of`` where it is not named.
    interval: log-SNR range, ends included, in which guidance acts (Kynkäänniemi et al. 2024), None for all of it;
    outside all scales are 1.
    """

    base: str
    differences: tuple[Difference, ...] = ()
    rescale: float = 0.0
    reference: str = ""
    interval: tuple[float, float] | None = None

    @property
    def branches(self) -> tuple[str, ...]:
        """Every branch that a step may need: those that count at some scale."""
        ends = [name for each in self.differences if not _is(each.scale, 0) for name in (each.of, each.over)]
        names = dict.fromkeys([self.base, *ends])
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
        """The same for some frames of the clip, in windows and blocks: those beyond its end have the last one's."""
        if frames is None:
            return self

        def cut(scale: Scale) -> Scale:
            if callable(scale):
                return lambda step, level: _frames(scale(step, level), frames)
            return _frames(scale, frames)

        return replace(self, differences=tuple(replace(each, scale=cut(each.scale)) for each in self.differences))


def classifier_free(scale: Scale, rescale: float = 0.0, interval: tuple[float, float] | None = None) -> Guidance:
    """``negative + scale (positive - negative)`` (Ho & Salimans 2022). scale = 1 + w of VDM: 1 is unguided."""
    return Guidance("negative", (Difference("positive", "negative", scale),), rescale, "positive", interval)


def oscillating(scale: float | Tensor, first: int = 10) -> Scale:
    """Open-Sora's oscillation: from step ``first`` on every odd step has scale 1 (g×11, 1, g, 1, … for 10)."""
    return lambda step, _level: 1.0 if step >= first and step % 2 else scale


@dataclass(frozen=True, eq=False)
class Guided:
    """A denoiser from those of the branches; `Guidance` says how, ``levels`` are those of the run, for its steps.

    at_once: two branches at the same time, each on half of the processor's cores; see `both`.
    """

    branches: Mapping[str, Denoiser]
    guidance: Guidance
    at_once: bool = False
    levels: NoiseLevel | None = None

    def __call__(self, z: Tensor, level: NoiseLevel) -> Tensor:
        base, told = self._counting(z, level)
        names = list(dict.fromkeys([*(n for each, _ in told for n in (each.of, each.over)), base]))
        rescaled = self.guidance.rescale and bool(told)
        reference = self.guidance.reference or (told[0][0].of if told else base)
        if rescaled and reference not in names:
            names.append(reference)
        x0 = self._denoised(names, z, level)
        guided = x0[base]
        for each, scale in told:
            guided = guided + scale * (x0[each.of] - x0[each.over])
        return _match_contrast(guided, x0[reference], self.guidance.rescale) if rescaled else guided

    def _denoised(self, names: Sequence[str], z: Tensor, level: NoiseLevel) -> dict[str, Tensor]:
        if self.at_once and len(names) == 2:
            first, second = (self.branches[name] for name in names)
            return dict(zip(names, both(lambda: first(z, level), lambda: second(z, level)), strict=True))
        return {name: self.branches[name](z, level) for name in names}

    def _counting(self, z: Tensor, level: NoiseLevel) -> tuple[str, list[tuple[Difference, Tensor]]]:
        """The base, and the differences that count here with their scales broadcastable to z."""
        low, high = self.guidance.interval or (-math.inf, math.inf)
        inside = (level.log_snr >= low) & (level.log_snr <= high)
        base, step = self.guidance.base, self._step(level)
        told: list[tuple[Difference, Tensor]] = []
        for each in self.guidance.differences:
            scale = torch.as_tensor(each.scale(step, level) if callable(each.scale) else each.scale)
            if bool((scale == 1).all()) or not bool(inside.any()):
                if each.over == base and not told:
                    base = each.of
                    continue
                scale = torch.ones(())
            elif bool((scale == 0).all()) and bool(inside.all()):
                continue
            told.append((each, self._over(scale, inside, z)))
        return base, told

    def _over(self, scale: Tensor, inside: Tensor, z: Tensor) -> Tensor:
        if scale.ndim == 1:
            if len(scale) != z.shape[2]:
                raise BadRequest(f"guidance has {len(scale)} scales; expected one per frame, {z.shape[2]}")
            scale = scale.reshape(1, 1, -1, 1, 1)
        return torch.where(broadcast(inside, z) > 0, scale.to(z), 1)

    def _step(self, level: NoiseLevel) -> int:
        """The step that leaves this level, or the last noisier one (a sampler may look between two)."""
        if self.levels is None:
            return 0
        return max(int((self.levels.log_snr <= level.log_snr.min().to(self.levels.log_snr)).sum()) - 1, 0)


def _is(scale: Scale, value: float) -> bool:
    return not callable(scale) and bool((torch.as_tensor(scale) == value).all())


def _frames(scale: float | Tensor, frames: Sequence[int]) -> float | Tensor:
    if not isinstance(scale, Tensor) or scale.ndim == 0:
        return scale
    return scale[torch.as_tensor(list(frames)).clamp_max(len(scale) - 1)]


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
    std = broadcast(cond.flatten(1).std(1), guided) / broadcast(guided.flatten(1).std(1), guided).clamp_min(1e-8)
    return guided * (1 + amount * (std - 1))


@dataclass(frozen=True)
class Thresholded:
    """x0 clipped to [-limit, limit]; with ``quantile`` < 1, dynamic thresholding (Saharia et al. 2022).

    Dynamic: each item is clipped at the quantile of |x0| (at least ``limit``) and scaled back to the limit.
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
    """Something known of a clip: ``operator(x0) = target``, held with this weight.

    The operator is differentiable and takes x0 BCTHW, in float32 or wider; the target has the shape of its result.
    """

    operator: Callable[[Tensor], Tensor]
    target: Tensor
    weight: float

    @staticmethod
    def of_piece(content: Tensor, mask: Tensor, weight: float) -> Measurement:
        """A given piece: ``mask x0 = mask content``; mask B1THW, 1 where it is given."""
        return Measurement(lambda x0: mask.to(x0) * x0, mask.to(content) * content, weight)

    def miss(self, x0: Tensor) -> Tensor:
        """``|target - operator(x0)|²``, summed over the batch."""
        found = self.operator(x0)
        if found.shape != self.target.shape:
            told, wanted = tuple(self.target.shape), tuple(found.shape)
            raise BadRequest(f"the target of a measurement is {told}; expected its operator's {wanted}")
        return (self.target.to(x0) - found).square().sum()


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Reconstruction guidance (VDM, section 3.1): unknown pixels move so that what is known comes out right.

    ``x0 - (alpha / 2) grad_z Σ weight_k |target_k - operator_k(x0)|²``, on the pixels that ``held`` leaves free (on all
    without one). Given frames and a low-resolution clip are both measurements; what has weight 0 is not measured, and
    with nothing measured the denoiser is left alone.

    Meant beside overwriting of the held pixels (`kinema.diffusion.overwrite`), as in VDM. The denoiser is
    differentiated once a call, also under no_grad; its weights and conditioning, and those of the operators, must not
    have been made under inference_mode.
    """

    denoise: Denoiser
    measurements: Sequence[Measurement]
    held: Tensor | None = None

    def __call__(self, z: Tensor, level: NoiseLevel) -> Tensor:
        counting = [each for each in self.measurements if each.weight]
        if not counting:
            return self.denoise(z, level)
        # The loss is of relative weights, so that a large weight does not overflow the gradient of an fp16 network.
        weight = max(abs(each.weight) for each in counting)
        with torch.inference_mode(False), torch.enable_grad():
            z_in = z.detach().clone().requires_grad_(True)
            x0 = self.denoise(z_in, level)
            wide = x0.to(torch.promote_types(x0.dtype, torch.float32))  # a sum over a clip overflows fp16
            loss = sum((each.weight / weight * each.miss(wide) for each in counting), start=wide.new_zeros(()))
            (grad,) = torch.autograd.grad(loss, z_in)
        if self.held is not None:
            grad = grad * (1 - self.held.to(grad))
        return x0.detach() - weight / 2 * level.like(z)[0] * grad
