"""Noise levels and schedules, all in the form ``z = alpha * x0 + sigma * eps``.

Variance preserving (``alpha² + sigma² = 1``), variance exploding (``alpha = 1``) and rectified flow
(``alpha + sigma = 1``) are three scalings of the same path: at a given log-SNR, z / alpha is the same variable in each.
No code here computes ``sigma / alpha``, which is infinite at the noise end of a flow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from kinema.schema import BadRequest, Spacing

SPACINGS: tuple[str, ...] = get_args(Spacing)
OF_TIMESTEPS = ("respaced", "leading", "trailing", "open-linspace", "open-leading")
"""Spacings of integer timesteps, which only `DiscreteBetas` have."""
BetaKind = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]

TINY = 1e-15
"""Lower clamp on alpha and sigma in `NoiseLevel.log_snr`, which bounds it to ±69.1."""
KARRAS_RHO = 7.0
KARRAS_RANGE = 0.002, 80.0
EXTREME_LOG_SNR = 20.0
"""Limit of log-SNR spacing towards infinite ends (VDM clips to the same range)."""


def broadcast(value: Tensor, z: Tensor) -> Tensor:
    """Reshape values per batch item, [B], or per item and frame, [B, T], to multiply z (BCT…), in z's dtype.

    Raises ValueError if the number of frames differs from z's.
    """
    value = value.to(z)
    if value.ndim < 2:
        return value.reshape((-1,) + (1,) * (z.ndim - 1))
    if z.ndim < 3 or value.shape[1] not in (1, z.shape[2]):
        raise ValueError(f"the level per frame is for {value.shape[1]} frames; the video has shape {tuple(z.shape)}")
    return value.reshape((len(value), 1, value.shape[1]) + (1,) * (z.ndim - 3))


@dataclass(frozen=True, eq=False)
class NoiseLevel:
    """Noise levels ``alpha`` and ``sigma``, both [N]: one per batch item, or a list of N levels.

    Both may instead be [B, T], a level per frame (`overwrite.CleanFrames`). Such a level is not a list: ``len`` and
    indexing raise TypeError.

    A common scale of the two is immaterial: (k alpha, k sigma) with k z is the same state, and parameterisations and
    samplers respect this.
    """

    alpha: Tensor
    sigma: Tensor
    state: NoiseLevel | None = field(default=None, kw_only=True)
    """The level of z itself, [B], where alpha and sigma are what a network gets for each frame (`CleanFrames`)."""

    @property
    def per_frame(self) -> bool:
        """Whether each frame has its own level."""
        return self.alpha.ndim == 2

    @property
    def log_snr(self) -> Tensor:
        """log(alpha² / sigma²), [N] or [B, T]; finite even where alpha or sigma is 0 (see `TINY`)."""
        return 2 * (self.alpha.clamp_min(TINY).log() - self.sigma.clamp_min(TINY).log())

    def __len__(self) -> int:
        self._require_list()
        return len(self.alpha)

    def __getitem__(self, index: int | slice) -> NoiseLevel:
        self._require_list()
        if isinstance(index, int):
            index = slice(index, index + 1 or None)
        return NoiseLevel(self.alpha[index], self.sigma[index])

    def _require_list(self) -> None:
        if self.per_frame:
            shape = "×".join(map(str, self.alpha.shape))
            raise TypeError(
                f"a level per frame ({shape}) was used as a list of levels; expected alpha and sigma as [N]"
            )

    def batch(self, size: int) -> NoiseLevel:
        """Expand a single level, [1] or [1, T], to a batch: [size] or [size, T]."""
        shape = (size, *self.alpha.shape[1:])
        state = None if self.state is None else self.state.batch(size)
        return NoiseLevel(self.alpha.expand(shape), self.sigma.expand(shape), state=state)

    def like(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) with z's dtype and device, shaped to multiply z: [N,1,1,1,1], or [B,1,T,1,1] per frame."""
        return broadcast(self.alpha, z), broadcast(self.sigma, z)

    def add_noise(self, x0: Tensor, eps: Tensor) -> Tensor:
        """Diffuse x0 to this level: ``alpha * x0 + sigma * eps``."""
        alpha, sigma = self.like(x0)
        return alpha * x0 + sigma * eps


def variance_preserving(log_snr: Tensor) -> NoiseLevel:
    """The level of a log-SNR with ``alpha² + sigma² = 1``."""
    return NoiseLevel(torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt())


def variance_exploding(log_snr: Tensor) -> NoiseLevel:
    """The level of a log-SNR with ``alpha = 1``."""
    return NoiseLevel(torch.ones_like(log_snr), torch.exp(-log_snr / 2))


def flow(log_snr: Tensor) -> NoiseLevel:
    """The level of a log-SNR with ``alpha + sigma = 1``."""
    return NoiseLevel(torch.sigmoid(log_snr / 2), torch.sigmoid(-log_snr / 2))


class Schedule(Protocol):
    """Noise levels as a function of time t in [0, 1]: 0 is the clean end, 1 the noise end."""

    @property
    def prior_std(self) -> float:
        """Standard deviation of z at t = 1, for data of unit variance unless the schedule sets another."""
        ...

    def level(self, t: Tensor) -> NoiseLevel:
        """The levels at times t, [N], in [0, 1]."""
        ...

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `level`: times of log-SNRs, [N]; values outside the schedule's range map to its nearer end."""
        ...

    def at(self, log_snr: Tensor) -> NoiseLevel:
        """The level of a log-SNR in this schedule's scaling, even outside its range."""
        ...


@dataclass(frozen=True)
class CosineLogSNR:
    """Continuous cosine schedule with bounded log-SNR (VDM, section 2; Kingma et al. 2021).

    ``log_snr(t) = -2 log tan(a t + b) - 2 log(shift)``, with a and b such that t = 0 and t = 1 give the two bounds
    without shift. A shift above 1 spends more of the time on strong noise (Hoogeboom et al. 2023, arXiv 2301.11093,
    eq. 6, where it is the side of the frame over 64).
    """

    log_snr_min: float = -20.0
    log_snr_max: float = 20.0
    shift: float = 1.0

    @property
    def prior_std(self) -> float:
        return 1.0

    @property
    def _line(self) -> tuple[float, float]:
        b = math.atan(math.exp(-self.log_snr_max / 2))
        return math.atan(math.exp(-self.log_snr_min / 2)) - b, b

    def level(self, t: Tensor) -> NoiseLevel:
        a, b = self._line
        return self.at(-2 * (self.shift * torch.tan(a * t + b)).log())

    def time(self, log_snr: Tensor) -> Tensor:
        a, b = self._line
        return ((torch.atan(torch.exp(-log_snr / 2) / self.shift) - b) / a).clamp(0, 1)

    def at(self, log_snr: Tensor) -> NoiseLevel:
        return variance_preserving(log_snr)


@dataclass(frozen=True)
class DiscreteBetas:
    """``count`` discrete timesteps (DDPM), extended to continuous time by interpolating log-SNR.

    ``linear``: betas evenly spaced from start to end. ``scaled_linear``: their square roots are evenly spaced (LDM code
    calls this "linear"). ``squaredcos_cap_v2``: the cosine schedule of IDDPM, which has no start and end. Time t is
    timestep ``t * (count - 1)``.
    """

    kind: BetaKind
    start: float
    end: float
    count: int = 1000
    trained: tuple[float, ...] = ()
    """The betas themselves, ``count`` of them, in place of a formula."""
    zero_snr: bool = False
    """Whether the betas are rescaled so that the last timestep is pure noise (Lin et al. 2023, alg. 1)."""
    offset: int = 1
    """First timestep of leading spacing, `steps_offset` in diffusers."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(BetaKind):
            raise BadRequest(f"betas are {self.kind!r}; expected one of {', '.join(get_args(BetaKind))}")
        if self.trained and len(self.trained) != self.count:
            raise BadRequest(f"there are {len(self.trained)} betas; expected {self.count}, one for each timestep")
        if self.trained and not all(0 < beta < 1 for beta in self.trained):
            raise BadRequest("betas have values outside 0 to 1; expected each between them")

    @property
    def prior_std(self) -> float:
        return 1.0

    @cached_property
    def betas(self) -> Tensor:
        """[count], float64, before rescaling."""
        if self.trained:
            return torch.tensor(self.trained, dtype=torch.float64)
        if self.kind == "squaredcos_cap_v2":
            times = torch.linspace(0, 1, self.count + 1, dtype=torch.float64)
            signal = torch.cos((times + 0.008) / 1.008 * math.pi / 2).square()
            return (1 - signal[1:] / signal[:-1]).clamp_max(0.999)
        power = 1 if self.kind == "linear" else 2
        start, end = self.start ** (1 / power), self.end ** (1 / power)
        return torch.linspace(start, end, self.count, dtype=torch.float64) ** power

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """Cumulative products of 1 - beta, [count], float64: alpha² of each timestep."""
        products = torch.cumprod(1 - self.betas, 0)
        if not self.zero_snr:
            return products
        alpha = products.sqrt()
        return ((alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))).square()

    @cached_property
    def _log_snrs(self) -> Tensor:
        return torch.logit(self.alphas_cumprod).clamp_min(2 * math.log(TINY))

    def level(self, t: Tensor) -> NoiseLevel:
        step = t.clamp(0, 1) * (self.count - 1)
        table = self._log_snrs.to(t)
        low = step.floor().long().clamp_max(self.count - 2)
        level = self.at(torch.lerp(table[low], table[low + 1], step - low))
        if not self.zero_snr:
            return level
        last = step >= self.count - 1  # exactly noise, as `at` of a finite log-SNR is not
        return NoiseLevel(level.alpha.masked_fill(last, 0), level.sigma.masked_fill(last, 1))

    def between(self, step: Tensor) -> NoiseLevel:
        """The level at fractional timesteps, by interpolating sigma / alpha as diffusers does; see "linspace"."""
        table = torch.exp(-self._log_snrs.to(step) / 2)
        low = step.floor().long().clamp_max(self.count - 2)
        exact = self.level(step / (self.count - 1))
        inside = (step > low) & (step < low + 1)
        mean = self.at(-2 * torch.lerp(table[low], table[low + 1], step - low).log())
        return NoiseLevel(mean.alpha.where(inside, exact.alpha), mean.sigma.where(inside, exact.sigma))

    def timestep(self, log_snr: Tensor) -> Tensor:
        """The fractional timestep in [0, count - 1] that a network trained on these betas expects."""
        table = self._log_snrs.to(log_snr)
        high = torch.searchsorted(-table, -log_snr.contiguous()).clamp(1, self.count - 1)
        before, after = table[high - 1], table[high]
        return high - 1 + ((log_snr - before) / (after - before)).clamp(0, 1)

    def time(self, log_snr: Tensor) -> Tensor:
        return self.timestep(log_snr) / (self.count - 1)

    def at(self, log_snr: Tensor) -> NoiseLevel:
        return variance_preserving(log_snr)


@dataclass(frozen=True)
class EDMSigmas:
    """Variance-exploding levels of EDM (Karras et al. 2022, eq. 5): sigma^(1/rho) linear in time."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = KARRAS_RHO
    data_std: float = 1.0
    """Standard deviation of the data, for `prior_std`; with 0 it is sigma_max, as in k-diffusion."""

    @property
    def prior_std(self) -> float:
        return math.hypot(self.sigma_max, self.data_std)

    def level(self, t: Tensor) -> NoiseLevel:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        sigma = (low + t * (high - low)) ** self.rho
        return NoiseLevel(torch.ones_like(sigma), sigma)

    def time(self, log_snr: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return ((torch.exp(-log_snr / (2 * self.rho)) - low) / (high - low)).clamp(0, 1)

    def at(self, log_snr: Tensor) -> NoiseLevel:
        return variance_exploding(log_snr)


@dataclass(frozen=True)
class RectifiedFlow:
    """Straight path ``z = (1 - s) x0 + s eps``; ``shift`` > 1 spends more time at high noise.

    ``s = shift t / (1 + (shift - 1) t)`` (Esser et al. 2024, section 5.3.2; shift 1 is ``s = t``).
    """

    shift: float = 1.0

    @property
    def prior_std(self) -> float:
        return 1.0

    def level(self, t: Tensor) -> NoiseLevel:
        s = self.shift * t / (1 + (self.shift - 1) * t)
        return NoiseLevel(1 - s, s)

    def time(self, log_snr: Tensor) -> Tensor:
        s = torch.sigmoid(-log_snr / 2)
        return s / (self.shift - (self.shift - 1) * s)

    def at(self, log_snr: Tensor) -> NoiseLevel:
        return flow(log_snr)


def spaced(schedule: Schedule, steps: int, spacing: Spacing = "uniform", *, karras: bool = False) -> NoiseLevel:
    """Return ``steps + 1`` levels, float64, from noise to clean; the last is exactly clean (alpha 1, sigma 0).

    - ``uniform``: t = 1, 1 - 1/n, …, 1/n, then clean (VDM, rectified flow);
    - ``linspace``: n times from 1 to 0 inclusive, then clean (equal to uniform if t = 0 is clean); sigma / alpha is
      linear between the timesteps of `DiscreteBetas`, as in diffusers' Euler and Heun;
    - ``respaced``: the n integer timesteps nearest to linspace's of `DiscreteBetas` (IDDPM, Nichol & Dhariwal 2021;
      linspace of diffusers' DDIM), then clean; linspace for continuous schedules;
    - ``trailing``, ``leading``: integer timesteps of `DiscreteBetas` as in diffusers (Lin et al. 2023, table 2; leading
      from `DiscreteBetas.offset`); uniform for continuous schedules;
    - ``open-linspace``, ``open-leading``: what diffusers' DPM++ and UniPC call linspace and leading: n + 1 integer
      timesteps without the cleanest; uniform for continuous schedules;
    - ``karras``: (sigma / alpha)^(1/7) evenly spaced between the schedule's ends (EDM eq. 5), within 80 to 0.002;
      `EDMSigmas` keeps its own range and rho;
    - ``log-snr``: evenly spaced in log-SNR between the schedule's ends, within -20 to 20.

    The last two still start exactly at t = 1, however noisy it is. ``karras`` spaces the steps as "karras" does, but
    between the first and last of the spacing's timesteps, as diffusers' Euler and Heun do; DPM++ and UniPC take the
    whole schedule, which is the spacing "karras". Raises `BadRequest` for more steps than there are timesteps.
    """
    if steps < 1:
        raise BadRequest(f"steps is {steps}; expected at least 1")
    if spacing not in SPACINGS:
        raise BadRequest(f"spacing is {spacing!r}; expected one of {', '.join(SPACINGS)}")
    if karras and spacing == "log-snr":
        raise BadRequest("karras and log-snr are two ways to space steps; choose one")
    discrete = schedule if isinstance(schedule, DiscreteBetas) else None
    if spacing in ("karras", "log-snr") or (karras and (discrete is None or spacing == "uniform")):
        ends = schedule.level(torch.tensor([1.0, 0.0], dtype=torch.float64))
        return _clean_last(_between(schedule, ends, steps, "karras" if karras else spacing))
    levels = _at_times(schedule, steps, spacing) if discrete is None else _at_timesteps(discrete, steps, spacing)
    return _clean_last(_between(schedule, levels, steps, "karras") if karras else levels)


def check_spacing(schedule: Schedule, spacing: str) -> None:
    """Raise BadRequest for a spacing that the schedule does not have."""
    if spacing in OF_TIMESTEPS and not isinstance(schedule, DiscreteBetas):
        others = ", ".join(name for name in SPACINGS if name not in OF_TIMESTEPS)
        raise BadRequest(f"spacing {spacing} needs discrete timesteps, which this model does not have; use {others}")


def _at_times(schedule: Schedule, steps: int, spacing: str) -> NoiseLevel:
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]
    if spacing in ("linspace", "respaced") and bool(schedule.level(times.new_zeros(1)).sigma > 0):
        times = torch.linspace(1, 0, steps, dtype=torch.float64)
    return schedule.level(times)


def _at_timesteps(schedule: DiscreteBetas, steps: int, spacing: str) -> NoiseLevel:
    count, last = schedule.count, schedule.count - 1
    if spacing == "uniform":
        return _at_times(schedule, steps, spacing)
    if spacing == "linspace":
        return schedule.between(torch.linspace(last, 0, steps, dtype=torch.float64))
    points = steps + spacing.startswith("open-")
    if points > count:
        raise BadRequest(f"steps is {steps}; expected at most {count}, the model's timesteps, with {spacing} spacing")
    index = torch.arange(points, dtype=torch.float64)
    if spacing == "trailing":
        timesteps = (count - index * (count / steps)).round() - 1
    elif spacing in ("leading", "open-leading"):
        timesteps = ((points - 1 - index) * (count // points) + schedule.offset).clamp_max(last)
    else:
        timesteps = torch.linspace(last, 0, points, dtype=torch.float64).round()
    return schedule.level(timesteps[:steps] / last)


def _between(schedule: Schedule, ends: NoiseLevel, steps: int, spacing: str) -> NoiseLevel:
    """Levels from the first to the last of ``ends``."""
    even = torch.linspace(0, 1, steps, dtype=torch.float64)
    first, last = ends.log_snr[[0, -1]]
    if spacing == "log-snr":
        noisy, clean = (float(each.clamp(-EXTREME_LOG_SNR, EXTREME_LOG_SNR)) for each in (first, last))
        log_snr = noisy + even * (clean - noisy)
    elif isinstance(schedule, EDMSigmas):
        return schedule.level(1 - even)
    else:
        # Beyond EDM's own range of sigma / alpha most steps would have no effect.
        high, low = (float(torch.exp(-x / 2).clamp(*KARRAS_RANGE)) ** (1 / KARRAS_RHO) for x in (first, last))
        log_snr = -2 * KARRAS_RHO * (high + even * (low - high)).log()
    rest = schedule.at(log_snr)[1:]
    return NoiseLevel(torch.cat([ends.alpha[:1], rest.alpha]), torch.cat([ends.sigma[:1], rest.sigma]))


def _clean_last(levels: NoiseLevel) -> NoiseLevel:
    alpha, sigma = levels.alpha, levels.sigma
    return NoiseLevel(torch.cat([alpha, alpha.new_ones(1)]), torch.cat([sigma, sigma.new_zeros(1)]))


def edit_steps(steps: int, strength: float) -> int:
    """Return the number of steps an edit runs: ``steps * strength`` rounded down, as in diffusers.

    ``strength`` is in [0, 1]. With 0 steps the source is returned unchanged.
    """
    return min(int(steps * strength), steps)


def last_levels(levels: NoiseLevel, strength: float) -> NoiseLevel:
    """Return the levels of an edit's steps: the last of ``levels``; only the clean end if it runs no steps."""
    steps = len(levels) - 1
    return levels[steps - edit_steps(steps, strength) :]


def custom(schedule: Schedule, *, sigmas: Sequence[float] = (), log_snrs: Sequence[float] = ()) -> NoiseLevel:
    """Return levels from an explicit list, noisiest first, in the schedule's scaling; float64.

    ``sigmas`` are noise-to-signal ratios sigma / alpha, as in k-diffusion and published lists (Align Your Steps); a
    final 0 is the clean end. For a `RectifiedFlow` they are the flow's own sigmas in [0, 1]. Alternatively give
    ``log_snrs``, to which the clean end is appended.
    """
    if bool(sigmas) == bool(log_snrs):
        raise BadRequest("custom levels need either sigmas or log_snrs, not both")
    if log_snrs:
        return _denoising(_clean_last(schedule.at(torch.tensor(log_snrs, dtype=torch.float64))))
    sigma = torch.tensor(sigmas, dtype=torch.float64)
    if isinstance(schedule, RectifiedFlow):
        if not bool(((sigma >= 0) & (sigma <= 1)).all()):
            raise BadRequest("custom sigmas of a rectified flow must be in [0, 1]")
        return _denoising(NoiseLevel(1 - sigma, sigma))
    clean = sigma == 0
    scaled = schedule.at(-2 * sigma.where(~clean, 1).log())
    return _denoising(NoiseLevel(scaled.alpha.where(~clean, 1), scaled.sigma.where(~clean, 0)))


def _denoising(levels: NoiseLevel) -> NoiseLevel:
    if len(levels) < 2 or not bool((levels.log_snr.diff() > 0).all()):
        raise BadRequest("custom levels must be at least two, with strictly decreasing noise")
    return levels
