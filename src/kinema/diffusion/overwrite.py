"""Overwriting the sampler's state with known regions: inpainting, edits and Time-to-Move as one primitive.

A `KnownRegion` is given content on the latent grid, held in the sampler's states from 0 (the noise end) to its
``release``; state N is the clip. A region that is never released is in the result exactly as given. A region that
covers everything and is released in between is SDEdit (Meng et al. 2022, alg. 1); two regions with different releases
are Time-to-Move (background released early, moving objects late).

Models trained on clean conditioning frames get them from a region with "clean" noise and `CleanFrames` around the
network, which passes it a noise level per frame.

Shapes: z, x0 and content BCTHW; mask B1THW, 1 inside the region.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kinema.diffusion.noise import Noise
from kinema.diffusion.parameterise import Denoiser, of_x0
from kinema.diffusion.samplers import State, posterior
from kinema.diffusion.schedules import NoiseLevel, broadcast
from kinema.schema import BadRequest

RegionNoise = Literal["fresh", "posterior", "fixed", "clean", "lagging", "none"]

CLEAN = "clean", "lagging"


@dataclass(frozen=True, eq=False)
class KnownRegion:
    """Clean ``content`` held where ``mask`` is 1, in states 0 to ``release``.

    Its noise is "fresh" in every state, ``q(z_s | content)``; "posterior", ``q(z_s | content, z_t)`` given the previous
    state (the two replacement methods of VDM, section 3.1); or "fixed", one sample for all states (SDEdit,
    Time-to-Move). A "clean" region has no noise while it is held, and fresh noise in the state of its release
    (Open-Sora 1.2's edit). A "lagging" region is like it, but the network takes it for clean in that state too
    (Open-Sora 1.1's). A region with noise "none" has none in any state, and the network does not know (references with
    Open-Sora's edit ratio 1 stand in the place of the initial noise).
    """

    content: Tensor
    mask: Tensor
    release: int | None
    """Last state that holds the region; None: never released."""
    noise: RegionNoise = "fresh"

    def over(self, x0: Tensor) -> Tensor:
        """x0 with the region's content in its place."""
        return torch.lerp(x0, self.content.to(x0), self.mask.to(x0).expand_as(x0))


class Overwrite:
    """The known regions of one sampling run over these levels; later regions override earlier ones.

    ``draws`` samples "fresh" and "posterior" noise; ``fixed`` is the "fixed" noise, usually the clip's initial noise.
    """

    def __init__(self, pieces: Sequence[KnownRegion], levels: NoiseLevel, draws: Noise, fixed: Tensor) -> None:
        self.steps = len(levels) - 1
        for piece in pieces:
            if not 0 <= self._release(piece) <= self.steps:
                raise BadRequest(f"a known region is released at step {piece.release}; expected 0 to {self.steps}")
        self.pieces, self.levels, self.draws, self.fixed = tuple(pieces), levels, draws, fixed
        self._known: dict[int, tuple[int, Tensor]] = {}

    @property
    def first(self) -> int:
        """The state to start sampling from: the last one in which the whole clip is held."""
        whole = [self._release(piece) for piece in self.pieces if bool(piece.mask.min() > 0)]
        return max(whole, default=0)

    def start(self, z: Tensor) -> Tensor:
        """The initial state, from the initial noise z."""
        return self.state(z, self.first)

    def state(self, z: Tensor, index: int) -> Tensor:
        """Overwrite z, at ``levels[index]``, with the regions held there. Repeated calls use the same noise."""
        for number, piece in enumerate(self.pieces):
            if index <= self._release(piece):
                known = self._noised(number, piece, z, index)
                z = torch.lerp(z, known, piece.mask.to(z).expand_as(z))
        return z

    def clean(self, level: NoiseLevel) -> Tensor:
        """Return which frames are entirely clean in the state at this level, bool [B, T] (B may be 1)."""
        return self._frames(lambda piece, behind: behind < 0 or self._stays(piece), level)

    def told_clean(self, level: NoiseLevel) -> Tensor:
        """Return which frames a network takes for clean: those of `clean`, and "lagging" ones upon their release."""
        return self._frames(
            lambda piece, behind: behind < 0 or self._stays(piece) or (behind == 0 and piece.noise == "lagging"), level
        )

    def _frames(self, held: Callable[[KnownRegion, float], bool], level: NoiseLevel) -> Tensor:
        """The frames that clean regions cover entirely where ``held`` of a region and the log-SNR since its release."""
        log_snr, found = float(level.log_snr.min()), torch.zeros(1, self.fixed.shape[2], dtype=torch.bool)
        for piece in self.pieces:
            behind = log_snr - float(self.levels.log_snr[self._release(piece)])
            if piece.noise in CLEAN and held(piece, behind):
                found = found | (piece.mask.amin((1, 3, 4)) > 0).to(found.device)
        return found

    def run(self, first: int = 0) -> State:
        """Return `state` for a sampler that starts at ``levels[first]``."""
        return lambda z, index: self.state(z, first + index)

    def around(self, denoise: Denoiser) -> Denoiser:
        """Wrap a denoiser to put regions that are never released into x0, so that the clip contains them exactly."""
        given = [piece for piece in self.pieces if self._stays(piece)]
        if not given:
            return denoise

        def overwritten(z: Tensor, level: NoiseLevel) -> Tensor:
            x0 = denoise(z, level)
            for piece in given:
                x0 = of_x0(piece.over, x0, z)
            return x0

        return overwritten

    def _release(self, piece: KnownRegion) -> int:
        return self.steps if piece.release is None else piece.release

    def _stays(self, piece: KnownRegion) -> bool:
        return self._release(piece) == self.steps

    def _noised(self, number: int, piece: KnownRegion, z: Tensor, index: int) -> Tensor:
        """The region's content at this state's level, sampled only once per state."""
        before, known = self._known.get(number, (-1, z))
        if before == index:
            return known
        content, level = piece.content.to(z), self.levels[index].batch(len(z))
        bare = piece.noise in CLEAN and (index < self._release(piece) or self._stays(piece))
        if bare or piece.noise == "none":
            noised = content
        elif not bool((level.sigma > 0).any()):
            noised = level.like(z)[0] * content
        elif piece.noise == "fixed":
            noised = level.add_noise(content, self.fixed.to(z))
        elif piece.noise == "posterior" and 0 <= before < index:
            mean, variance, _ = posterior(known, content, self.levels[before].batch(len(z)), level)
            noised = mean + variance.sqrt() * self.draws.like(z)
        else:
            noised = level.add_noise(content, self.draws.like(z))
        self._known[number] = index, noised
        return noised


@dataclass(frozen=True, eq=False)
class CleanFrames:
    """A denoiser of models that take conditioning frames clean, at the clean level (alpha 1, sigma 0).

    ``held`` [B, T] (B may be 1) is True for those frames, or a function of the level that returns it
    (`Overwrite.clean`). z must hold them clean (`KnownRegion` with "clean" noise); x0 copies them from z. ``shown``
    (`Overwrite.told_clean`) are the frames that the network takes for clean; None: those that are. The wrapped
    denoiser always gets a level per frame, [B, T], whose ``state`` is the level of z. Open-Sora 1.1 to 1.3 and Wan's
    TI2V-5B are such models.
    """

    denoise: Denoiser
    held: Tensor | Callable[[NoiseLevel], Tensor]
    shown: Callable[[NoiseLevel], Tensor] | None = None

    def __call__(self, z: Tensor, level: NoiseLevel) -> Tensor:
        held = self._each(self.held(level) if callable(self.held) else self.held, z)
        shown = held if self.shown is None else self._each(self.shown(level), z)
        alpha, sigma = (each.reshape(len(each), -1).expand(len(z), z.shape[2]) for each in (level.alpha, level.sigma))
        shown = shown.to(level.alpha.device)
        output = self.denoise(z, NoiseLevel(alpha.masked_fill(shown, 1), sigma.masked_fill(shown, 0), state=level))
        # Explicit, since a network that predicts x0 need not reproduce its input.
        return of_x0(lambda x0: torch.where(broadcast(held, z) > 0, z, x0), output, z)

    @staticmethod
    def _each(frames: Tensor, z: Tensor) -> Tensor:
        return frames.bool().expand(len(z), z.shape[2])


# ------------------------------------------------------------------------------- releases


def release_at_level(noise: float, levels: NoiseLevel) -> int:
    """Return the state whose ``sigma / (alpha + sigma)`` is closest to ``noise``; the noisier one in a tie."""
    sigmas = levels.sigma / (levels.alpha + levels.sigma)
    return int((sigmas - noise).abs().argmin())


def release_at_ratio(ratio: float, times: Tensor) -> int:
    """Return the first state whose time (1 is the noise end) is at most ``ratio`` (Open-Sora's edit ratio)."""
    below = (times <= ratio).nonzero().flatten()
    return int(below[0]) if len(below) else len(times) - 1


OBJECT_MOTION = 0.987, 0.969
"""Noise levels at which Time-to-Move releases the background and the moving objects, from its steps for Wan and SVD."""
CAMERA_MOTION = 0.992, 0.978
"""The same for camera motion through a static scene, from its steps for Wan."""
STEP_FRACTIONS = 4 / 50, 9 / 50
"""The same as fractions of the steps, from its steps for CogVideoX."""


def time_to_move(levels: NoiseLevel, noise: tuple[float, float] = OBJECT_MOTION) -> tuple[int, int]:
    """Return the last states that hold the background and the moving objects (Time-to-Move, published code).

    They are the states closest to the given noise levels (`release_at_level`), so one rule serves every schedule and
    number of steps. If no level is as noisy as the first one (Stable Diffusion's betas end near 0.936), both would be
    the same state; then CogVideoX's fractions of the steps are used.
    """
    if bool((levels.sigma / (levels.alpha + levels.sigma) >= noise[0]).any()):
        return release_at_level(noise[0], levels), release_at_level(noise[1], levels)
    steps = len(levels) - 1
    return round(STEP_FRACTIONS[0] * steps), round(STEP_FRACTIONS[1] * steps)
