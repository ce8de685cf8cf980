"""What is known of a clip, written over the sampler's state: inpainting, edits and Time-to-Move as one primitive.

A `KnownRegion` is a piece on the latent grid and the last state that it holds. States are counted from 0, the noise end, to
N, the clip: after its ``release`` a piece is free. One that is never released (N) is held to the end and is in the
result as it was given. With a mask of ones and a release in between it is SDEdit (Meng et al. 2022, alg. 1); several
with different releases are Time-to-Move (the background is released early, what moves late).

Models that were trained to see held frames clean get them so: a piece of "clean" noise, and `CleanFrames` around the
network, which tells it so frame by frame.

Shapes: z, x0 and content BCTHW; mask B1THW, 1 where the piece is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kinema.diffusion.noise import Noise
from kinema.diffusion.parameterise import Denoiser
from kinema.diffusion.samplers import State, posterior
from kinema.diffusion.schedules import NoiseLevel, broadcast
from kinema.schema import BadRequest

Drawn = Literal["fresh", "posterior", "fixed", "clean"]


@dataclass(frozen=True, eq=False)
class KnownRegion:
    """``content`` (clean) where ``mask`` is 1, in the states 0 to ``release``.

    Its noise is "fresh" at every state, ``q(z_s | content)``; "posterior", ``q(z_s | content, z_t)`` of the state
    before (the two replacements of VDM, section 3.1); or "fixed", one draw for all states (SDEdit, Time-to-Move). A
    "clean" piece has none as long as it is held; in the state of its release, from which sampling goes on, it has fresh
    noise (Open-Sora 1.2's edit).
    """

    content: Tensor
    mask: Tensor
    release: int | None
    """None: never; the piece is given."""
    noise: Drawn = "fresh"


class Overwrite:
    """The pieces of one sampling run over these levels; later pieces lie over earlier ones.

    ``draws`` are for noise that is not fixed, ``fixed`` is that which is: by convention the clip's own first noise.
    """

    def __init__(self, pieces: Sequence[KnownRegion], levels: NoiseLevel, draws: Noise, fixed: Tensor) -> None:
        self.steps = len(levels) - 1
        for piece in pieces:
            if not 0 <= self._release(piece) <= self.steps:
                raise BadRequest(f"a piece is released at step {piece.release}; expected 0 to {self.steps}")
        self.pieces, self.levels, self.draws, self.fixed = tuple(pieces), levels, draws, fixed
        self._known: dict[int, tuple[int, Tensor]] = {}

    @property
    def first(self) -> int:
        """The state to start from: all of the clip is held up to it, so that no step before it does anything."""
        whole = [self._release(piece) for piece in self.pieces if bool(piece.mask.min() > 0)]
        return max(whole, default=0)

    def start(self, z: Tensor) -> Tensor:
        """The state to start from, given the noise of a clip of which nothing is known."""
        return self.state(z, self.first)

    def state(self, z: Tensor, index: int) -> Tensor:
        """z, which is at ``levels[index]``, with the pieces that are held there. Asked twice it says the same."""
        for number, piece in enumerate(self.pieces):
            if index <= self._release(piece):
                known = self._drawn(number, piece, z, index)
                z = torch.lerp(z, known, piece.mask.to(z).expand_as(z))
        return z

    def clean(self, level: NoiseLevel) -> Tensor:
        """Which frames the state holds clean at this level, [B, T] (B may be 1), True where all of a frame is."""
        log_snr, told = float(level.log_snr.min()), torch.zeros(1, self.fixed.shape[2], dtype=torch.bool)
        for piece in self.pieces:
            before = log_snr < float(self.levels.log_snr[self._release(piece)])
            if piece.noise == "clean" and (before or self._stays(piece)):
                told = told | (piece.mask.amin((1, 3, 4)) > 0).to(told.device)
        return told

    def run(self, first: int = 0) -> State:
        """`state` for a sampler whose first level is ``levels[first]``."""
        return lambda z, index: self.state(z, first + index)

    def around(self, denoise: Denoiser) -> Denoiser:
        """The denoiser whose x0 has what is never released in place, so that the finished clip holds it exactly."""
        given = [piece for piece in self.pieces if self._stays(piece)]
        if not given:
            return denoise

        def held(z: Tensor, level: NoiseLevel) -> Tensor:
            x0 = denoise(z, level)
            for piece in given:
                x0 = torch.lerp(x0, piece.content.to(x0), piece.mask.to(x0).expand_as(x0))
            return x0

        return held

    def _release(self, piece: KnownRegion) -> int:
        return self.steps if piece.release is None else piece.release

    def _stays(self, piece: KnownRegion) -> bool:
        return self._release(piece) == self.steps

    def _drawn(self, number: int, piece: KnownRegion, z: Tensor, index: int) -> Tensor:
        """The piece at this level; drawn once a state, whoever asks how often."""
        before, known = self._known.get(number, (-1, z))
        if before == index:
            return known
        content, level = piece.content.to(z), self.levels[index].batch(len(z))
        if piece.noise == "clean" and (index < self._release(piece) or self._stays(piece)):
            made = content
        elif not bool((level.sigma > 0).any()):
            made = level.like(z)[0] * content
        elif piece.noise == "fixed":
            made = level.add_noise(content, self.fixed.to(z))
        elif piece.noise == "posterior" and 0 <= before < index:
            mean, variance, _ = posterior(known, content, self.levels[before].batch(len(z)), level)
            made = mean + variance.sqrt() * self.draws.like(z)
        else:
            made = level.add_noise(content, self.draws.like(z))
        self._known[number] = index, made
        return made


@dataclass(frozen=True, eq=False)
class CleanFrames:
    """A denoiser that sees frames clean, at the clean level (alpha 1, sigma 0), and the others at the call's.

    ``held`` [B, T] (B may be 1) is True for those frames, or says by level which they are (`Overwrite.clean`); z holds
    them clean (`KnownRegion` of "clean" noise), and x0 has them as they are in z. The wrapped denoiser gets a level per
    frame, [B, T], at every call, also where no frame is held. Open-Sora 1.1 to 1.3 and Wan's TI2V-5B are such models.
    """

    denoise: Denoiser
    held: Tensor | Callable[[NoiseLevel], Tensor]

    def __call__(self, z: Tensor, level: NoiseLevel) -> Tensor:
        told = self.held(level) if callable(self.held) else self.held
        held = told.to(level.alpha.device).bool().expand(len(z), z.shape[2])
        alpha, sigma = (each.reshape(len(each), -1).expand(len(z), z.shape[2]) for each in (level.alpha, level.sigma))
        x0 = self.denoise(z, NoiseLevel(alpha.masked_fill(held, 1), sigma.masked_fill(held, 0)))
        return torch.where(
            broadcast(held, z) > 0, z, x0
        )  # a network that predicts x0 itself need not give back its input


# ------------------------------------------------------------------------------- when pieces go


def by_level(noise: float, levels: NoiseLevel) -> int:
    """The state whose noise level ``sigma / (alpha + sigma)`` is nearest to ``noise``; the noisier of two as near."""
    told = levels.sigma / (levels.alpha + levels.sigma)
    return int((told - noise).abs().argmin())


def by_ratio(ratio: float, times: Tensor) -> int:
    """The first state whose time (1 is the noise end) is at or below ``ratio`` (Open-Sora's edit ratio)."""
    below = (times <= ratio).nonzero().flatten()
    return int(below[0]) if len(below) else len(times) - 1


MOVED = 0.987, 0.969
"""Noise levels at which Time-to-Move lets go of the background and of what moves: those of its Wan and SVD steps."""
CAMERA = 0.992, 0.978
"""The same where the camera moves through a still scene (its steps for Wan)."""
SHARES = 4 / 50, 9 / 50
"""Its shares of the steps for CogVideoX."""


def time_to_move(levels: NoiseLevel, noise: tuple[float, float] = MOVED) -> tuple[int, int]:
    """The states after which the background and what moves are free (Time-to-Move, published code).

    Those of the nearest noise levels (`by_level`), so that one rule serves each schedule and number of steps. Where no
    level is as noisy as the first of them (Stable Diffusion's betas end near 0.936) they would be the same state: there
    they are CogVideoX's shares of the steps.
    """
    if bool((levels.sigma / (levels.alpha + levels.sigma) >= noise[0]).any()):
        return by_level(noise[0], levels), by_level(noise[1], levels)
    steps = len(levels) - 1
    return round(SHARES[0] * steps), round(SHARES[1] * steps)
