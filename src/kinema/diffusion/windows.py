"""Clips longer than the model: temporal MultiDiffusion around any denoiser (Bar-Tal et al. 2023, Lumiere).

At each step every window is denoised by itself and the results are averaged per frame: the minimiser over x0 of
``sum_i sum_f w_if |x0_f - x0_if|²``, where x0_if is frame f as window i sees it and w_if its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import get_args

import torch
from torch import Tensor

from kinema.diffusion.parameterise import Denoiser
from kinema.diffusion.schedules import NoiseLevel
from kinema.grid import Lattice
from kinema.schema import BadRequest, Request, WindowWeights

RELATIVE_EDGE = 0.01
"""The "relative" weight of a window's first and last frame, where its middle has 1."""


def window_sizes(request: Request, lattice: Lattice) -> tuple[int, int]:
    """Length and overlap of a request's windows, in latent frames.

    Left out, windows share a quarter of their frames; inside attention three quarters, FreeNoise's 12 of 16, since
    there only attention is computed more than once.
    """
    assert request.window is not None
    length = lattice.grid.time.latent(request.window)
    if request.overlap is None:
        return length, length * 3 // 4 if request.window_in == "attention" else length // 4
    return length, min(request.overlap // lattice.grid.time.stride, length - 1)


def windows(total: int, length: int, overlap: int, looped: bool = False) -> list[list[int]]:
    """Frame indices of windows of ``length`` frames that together cover ``total``, neighbours sharing ``overlap``.

    The last window is moved back to end with the clip (64/16/4 starts at 0, 12, 24, 36, 48; 20/16/4 at 0, 4);
    looped, windows wrap around instead. A clip that fits in one window is one window.
    """
    if total < 1 or length < 1 or not 0 <= overlap < length:
        raise BadRequest(
            f"windows of {length} frames overlapping by {overlap} over {total} frames; expected overlap below length"
        )
    if total <= length:
        return [list(range(total))]
    step = length - overlap
    if looped:
        starts = list(range(0, total, step))
    else:
        starts = [min(start, total - length) for start in range(0, total - overlap, step)]
    return [[(start + i) % total for i in range(length)] for start in starts]


def uniform_windows(
    total: int, length: int, overlap: int, step: int, looped: bool = False, stride: int = 1
) -> list[list[int]]:
    """Windows that lie elsewhere at every ``step``, so that no frame is at a seam throughout (AnimateDiff's "uniform").

    They begin at ``round(total h)`` and every ``length - overlap`` frames on, where h is the step's bits read backwards
    (0, 1/2, 1/4, 3/4, …). Looped, they wrap around (32/16/4 starts at 0, 12, 24, then at 16, 28, 8); else those that
    would are moved back to end with the clip, and one begins it. With ``stride`` 2 there are also windows of every
    second frame, with 3 also of every fourth, and so on, as far as the clip is long enough for them.
    """
    if total <= length or not 0 <= overlap < length:
        return windows(total, length, overlap, looped)
    share = int(f"{step:032b}"[::-1], 2) / 2**32
    first, told = round(total * share), []
    for skip in (1 << i for i in range(stride)):
        span = (length - 1) * skip + 1
        if span > total:
            break
        end = first + total - (0 if looped else overlap)
        starts = [start % total for start in range(first + int(share * skip), end, length * skip - overlap)]
        if not looped:
            ends = {0, total - span} if skip == 1 else set()
            starts = sorted({min(start, total - span) for start in starts} | ends)
        told += [[(start + i * skip) % total for i in range(length)] for start in starts]
    return told


def blend(told: Sequence[Sequence[int]], weights: WindowWeights, looped: bool = False) -> list[Tensor]:
    """Each window's weight per frame, float64, normalised so that every frame's weights sum to 1.

    flat: the plain mean; pyramid: 1, 2, …, 2, 1 (length 16: 1..8, 8..1); relative: from 1 in the middle down to 0.01
    at both ends; overlap-linear: 1, falling linearly over the frames shared with the next window and rising over
    those shared with the one before. ``looped``: the first window follows the last.
    """
    if weights not in get_args(WindowWeights):
        raise BadRequest(f"window weights are {weights!r}; expected one of {', '.join(get_args(WindowWeights))}")
    ends = (told[-1], told[0]) if looped and len(told) > 1 else ((), ())
    befores, afters = [ends[0], *told[:-1]], [*told[1:], ends[1]]
    raw = [_raw(*near, weights) for near in zip(befores, told, afters, strict=True)]
    total = torch.zeros(1 + max(frame for window in told for frame in window), dtype=torch.float64)
    for window, weight in zip(told, raw, strict=True):
        total[window] += weight
    return [weight / total[window] for window, weight in zip(told, raw, strict=True)]


def _raw(before: Sequence[int], window: Sequence[int], after: Sequence[int], weights: WindowWeights) -> Tensor:
    position = torch.arange(len(window), dtype=torch.float64)
    if weights == "flat":
        return torch.ones_like(position)
    if weights == "relative":
        middle = (len(window) - 1) / 2
        return (1 - (position - middle).abs() / (middle + RELATIVE_EDGE / 2)).clamp_min(RELATIVE_EDGE)
    if weights == "pyramid":
        return torch.minimum(position, position.flip(0)) + 1
    shared_before = len(list(takewhile(set(before).__contains__, window)))
    shared_after = len(list(takewhile(set(after).__contains__, reversed(window))))
    rise = (position + 1) / (shared_before + 1)
    fall = (position.flip(0) + 1) / (shared_after + 1)
    return torch.minimum(rise, fall).clamp_max(1)


@dataclass(frozen=True, eq=False)
class View:
    """A window for layers that see all frames: its frames, and the weight of each, [T]."""

    frames: list[int]
    weight_T: Tensor


def views(total: int, length: int, overlap: int, weights: WindowWeights, looped: bool = False) -> tuple[View, ...]:
    """The windows as `View`s; none where one window holds the clip."""
    told = windows(total, length, overlap, looped)
    if len(told) == 1:
        return ()
    return tuple(View(frames, weight) for frames, weight in zip(told, blend(told, weights, looped), strict=True))


@dataclass
class Windowed:
    """A denoiser of ``total`` frames from denoisers of windows: one full clip at every step.

    ``make(frames)`` builds the denoiser of those frame indices, so that whatever is per frame (conditioning,
    guidance scales, masks) is sliced by them; it is called once per window. Exact for a denoiser that treats
    each frame by itself. z is B, C, total, H, W. ``uniform``: other windows at every noise level (`uniform_windows`);
    such a wrapper remembers one sampling run. Windows run one after the other into one sum, so that beyond z and x0
    a long clip needs the memory of one window.
    """

    make: Callable[[list[int]], Denoiser]
    total: int
    length: int
    overlap: int
    weights: WindowWeights = "pyramid"
    looped: bool = False
    uniform: bool = False
    stride: int = 1
    _parts: list[tuple[list[int], Tensor, Denoiser]] = field(init=False, repr=False)
    _made: dict[tuple[int, ...], Denoiser] = field(default_factory=dict, init=False, repr=False)
    _steps: int = field(default=0, init=False, repr=False)
    _level: float | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self._place(windows(self.total, self.length, self.overlap, self.looped))

    def _place(self, told: list[list[int]]) -> None:
        """Windows over these frames, with denoisers made once for each."""
        blended = blend(told, self.weights, self.looped)
        # Only the windows of now are kept: each holds a copy of its part of the conditioning.
        self._made = {
            tuple(frames): self._made[tuple(frames)] if tuple(frames) in self._made else self.make(frames)
            for frames in told
        }
        self._parts = [(fs, weight, self._made[tuple(fs)]) for fs, weight in zip(told, blended, strict=True)]

    def _move(self, level: NoiseLevel) -> None:
        """The windows of the next step, when the noise level is another than at the call before."""
        now = float(level.log_snr[0])
        if now != self._level:
            told = uniform_windows(self.total, self.length, self.overlap, self._steps, self.looped, self.stride)
            self._place(told)
            self._steps, self._level = self._steps + 1, now

    def __call__(self, z: Tensor, level: NoiseLevel) -> Tensor:
        if z.shape[2] != self.total:
            raise BadRequest(f"windows were made for {self.total} frames, the video has {z.shape[2]}")
        if self.uniform:
            self._move(level)
        if len(self._parts) == 1:
            return self._parts[0][2](z, level)
        x0 = torch.zeros_like(z)
        for frames, weight, denoise in self._parts:
            x0[:, :, frames] += weight.to(z).reshape(-1, 1, 1) * denoise(z[:, :, frames], level)
        return x0
