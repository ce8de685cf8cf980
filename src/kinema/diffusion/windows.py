"""Clips longer than the model: temporal MultiDiffusion around any denoiser (Bar-Tal et al. 2023, Lumiere).

Each step denoises every window separately and averages the results per frame. The average minimises
``sum_i sum_f w_if |x0_f - x0_if|²`` over x0, where x0_if is window i's estimate of frame f and w_if its weight.
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
"""Weight of a window's first and last frame with "relative" weights; the middle has 1."""


def window_sizes(request: Request, lattice: Lattice) -> tuple[int, int]:
    """Return the length and overlap of a request's windows, in latent frames.

    By default windows overlap by a quarter of their frames, and in attention by three quarters (FreeNoise's 12 of 16),
    as there only attention is computed more than once.
    """
    assert request.window is not None
    length = lattice.grid.time.latent(request.window)
    if request.overlap is None:
        return length, length * 3 // 4 if request.window_in == "attention" else length // 4
    return length, min(request.overlap // lattice.grid.time.stride, length - 1)


def windows(total: int, length: int, overlap: int, looped: bool = False) -> list[list[int]]:
    """Return the frame indices of windows of ``length`` frames that cover ``total`` frames, overlapping by ``overlap``.

    The last window is moved back to end with the clip (64/16/4 starts at 0, 12, 24, 36, 48; 20/16/4 at 0, 4). If
    ``looped``, windows wrap around instead. A clip no longer than ``length`` is one window.
    """
    if total < 1 or length < 1 or not 0 <= overlap < length:
        raise BadRequest(
            f"windows of {length} frames overlap by {overlap} in a clip of {total}; expected an overlap below {length}"
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
    """Return windows that shift at every ``step``, so that seams do not stay in place (AnimateDiff's "uniform").

    They start at ``round(total h)`` and then every ``length - overlap`` frames, where h is the step's bit-reversed
    fraction (0, 1/2, 1/4, 3/4, …). If ``looped``, they wrap around (32/16/4 starts at 0, 12, 24, then at 16, 28, 8);
    otherwise windows past the end are moved back, and one window starts at frame 0. ``stride`` 2 adds windows of every
    second frame, 3 also of every fourth, and so on, where the clip is long enough.
    """
    if total <= length or not 0 <= overlap < length:
        return windows(total, length, overlap, looped)
    share = int(f"{step:032b}"[::-1], 2) / 2**32
    first, result = round(total * share), []
    for skip in (1 << i for i in range(stride)):
        span = (length - 1) * skip + 1
        if span > total:
            break
        end = first + total - (0 if looped else overlap)
        starts = [start % total for start in range(first + int(share * skip), end, length * skip - overlap)]
        if not looped:
            ends = {0, total - span} if skip == 1 else set()
            starts = sorted({min(start, total - span) for start in starts} | ends)
        result += [[(start + i * skip) % total for i in range(length)] for start in starts]
    return result


def blend(placed: Sequence[Sequence[int]], weights: WindowWeights, looped: bool = False) -> list[Tensor]:
    """Return each window's weight per frame, float64, normalised so that every frame's weights sum to 1.

    flat: the plain mean. pyramid: 1, 2, …, 2, 1 (length 16: 1..8, 8..1). relative: 1 in the middle, decreasing to 0.01
    at both ends. overlap-linear: 1, with linear ramps over the frames shared with the neighbouring windows.
    ``looped``: the first window follows the last.
    """
    if weights not in get_args(WindowWeights):
        raise BadRequest(f"window weights are {weights!r}; expected one of {', '.join(get_args(WindowWeights))}")
    ends = (placed[-1], placed[0]) if looped and len(placed) > 1 else ((), ())
    befores, afters = [ends[0], *placed[:-1]], [*placed[1:], ends[1]]
    raw = [_raw(*near, weights) for near in zip(befores, placed, afters, strict=True)]
    total = torch.zeros(1 + max(frame for window in placed for frame in window), dtype=torch.float64)
    for window, weight in zip(placed, raw, strict=True):
        total[window] += weight
    return [weight / total[window] for window, weight in zip(placed, raw, strict=True)]


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
class AttentionWindow:
    """A window inside a layer that takes all frames: its frames, and their weights, [T]."""

    frames: list[int]
    weight_T: Tensor


def attention_windows(
    total: int, length: int, overlap: int, weights: WindowWeights, looped: bool = False
) -> tuple[AttentionWindow, ...]:
    """Return the windows as `AttentionWindow`s; an empty tuple if the clip fits in one window."""
    placed = windows(total, length, overlap, looped)
    if len(placed) == 1:
        return ()
    return tuple(
        AttentionWindow(frames, weight) for frames, weight in zip(placed, blend(placed, weights, looped), strict=True)
    )


@dataclass
class Windowed:
    """A denoiser of ``total`` frames that averages denoisers of windows at every step.

    ``make(frames)`` builds the denoiser of those frame indices, slicing whatever is per frame (conditioning, guidance
    scales, masks); it is called once per window. The average is exact for denoisers that treat frames independently.
    z is B, C, total, H, W. ``uniform`` uses other windows at every noise level (`uniform_windows`); such an instance
    serves one sampling run. Windows run one after another and accumulate, so a long clip needs the memory of one
    window in addition to z and x0.
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
    _denoisers: dict[tuple[int, ...], Denoiser] = field(default_factory=dict, init=False, repr=False)
    _steps: int = field(default=0, init=False, repr=False)
    _log_snr: float | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self._place(windows(self.total, self.length, self.overlap, self.looped))

    def _place(self, placed: list[list[int]]) -> None:
        """Use these windows, building denoisers only for new ones."""
        blended = blend(placed, self.weights, self.looped)
        # Denoisers of other windows are dropped, as each holds a copy of its part of the conditioning.
        self._denoisers = {
            tuple(frames): self._denoisers[tuple(frames)] if tuple(frames) in self._denoisers else self.make(frames)
            for frames in placed
        }
        self._parts = [(fs, weight, self._denoisers[tuple(fs)]) for fs, weight in zip(placed, blended, strict=True)]

    def _move(self, level: NoiseLevel) -> None:
        """Move to the next step's windows if the noise level has changed since the last call."""
        log_snr = float(level.log_snr[0])
        if log_snr != self._log_snr:
            self._place(uniform_windows(self.total, self.length, self.overlap, self._steps, self.looped, self.stride))
            self._steps, self._log_snr = self._steps + 1, log_snr

    def __call__(self, z: Tensor, level: NoiseLevel) -> Tensor:
        if z.shape[2] != self.total:
            raise BadRequest(f"the video has {z.shape[2]} frames; expected {self.total}, as given to the windows")
        if self.uniform:
            self._move(level)
        if len(self._parts) == 1:
            return self._parts[0][2](z, level)
        total: Tensor | None = None
        for frames, weight, denoise in self._parts:
            output = denoise(z[:, :, frames], level)
            if total is None:  # which may have more channels than z
                total = output.new_zeros(len(z), output.shape[1], *z.shape[2:])
            total[:, :, frames] += weight.to(z).reshape(-1, 1, 1) * output
        assert total is not None
        return total
