"""Run the sampler over a canvas with conditions, guidance, windows and overwriting of known regions.

Denoisers are nested, from the inside out: guidance with its rescale, reconstruction, threshold, windows, overwriting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal, cast

import torch
from einops import reduce
from torch import Tensor

from kinema.cancel import checkpoint
from kinema.canvas import Canvas, LowResolution, Piece
from kinema.diffusion.freeinit import steps_per_pass
from kinema.diffusion.guidance import (
    Evaluate,
    Guidance,
    Guided,
    InOneBatch,
    Measurement,
    Reconstruction,
    Thresholded,
    in_parallel,
    one_by_one,
)
from kinema.diffusion.noise import Noise, reschedule_noise
from kinema.diffusion.overwrite import CleanFrames, KnownRegion, Overwrite
from kinema.diffusion.parameterise import Denoiser
from kinema.diffusion.samplers import SAMPLERS, OnStep
from kinema.diffusion.schedules import NoiseLevel
from kinema.diffusion.windows import Windowed, window_sizes
from kinema.events import OnEvent, Phase, Step, ignore
from kinema.memory.placing import branches_of
from kinema.schema import Request
from kinema.settle import free_init, sampler_options
from kinema.spans import Spans, spans_of
from kinema.system import Conditions, System
from kinema.vae.given_pixels import encode_given
from kinema.values import counted


def sample(  # noqa: PLR0917
    system: System,
    request: Request,
    prompts: Mapping[str | None, Any],
    canvas: Canvas,
    noise: Tensor,
    draws: Noise,
    *,
    guidance: Guidance | None = None,
    on_event: OnEvent = ignore,
) -> Tensor:
    """Sample the canvas, once or once per FreeInit pass. Returns float32 latents B×C×T×h×w.

    ``prompts`` holds the encoded prompt under None, or several by text that change with the windows. ``guidance``
    overrides the request's for a part of a longer clip.
    """
    on_event(Phase("condition"))
    encoded = {text: system.condition(each, request, canvas, on_event) for text, each in prompts.items()}
    conditions = encoded[None] if None in encoded else WindowConditions.of_request(system, request, encoded)
    clean = system.family.sampling.defaults(system.config).clean_frames and canvas.block.way == "native"
    pieces, reconstruction = known_regions(system, request, canvas, clean=clean)
    own = next(iter(encoded.values())).regions
    pieces = pieces if own is None else list(own)
    guidance = system.family.sampling.guidance(system.config, request) or guidance or system.guidance(request)
    first = z = arranged(system, request, noise, draws).to(system.device, torch.float32)
    again = free_init(system, request)
    counts = steps_per_pass(request.free_init or 1, cast(int, request.steps), fast=request.free_init_fast)
    for number, steps in enumerate(counts):
        levels = system.levels(replace(request, steps=steps))
        noise = again(first, z, draws) if again is not None and number else first
        over = Overwrite(pieces, levels, draws, noise)
        clean_frames = over if clean else None
        denoise = over.around(guide(system, conditions, request, guidance, levels, reconstruction, clean_frames))
        z = over.start(system.prior(request, noise))
        which = f", pass {number + 1} of {len(counts)}" if len(counts) > 1 else ""
        remaining = steps - over.first
        detail = f"{counted(remaining, 'step')} of {request.sampler}{which}"
        on_event(Phase("sample", detail if remaining else "no steps: the known regions are held to the end"))
        if over.first == steps:
            return z
        report = step_reporter(on_event, sum(counts[:number]), sum(counts[number + 1 :]))
        options = {**sampler_options(system, request), "state": over.run(over.first)}
        remaining_levels = levels[over.first :]
        z = SAMPLERS[cast(str, request.sampler)](denoise, z, remaining_levels, noise=draws, on_step=report, **options)
    return with_given(z, next(iter(encoded.values())))


def with_given(z: Tensor, conditions: Conditions) -> Tensor:
    """The finished latents with those of given frames in their place (`Conditions.given`)."""
    if conditions.given is None:
        return z
    content, mask = (x.to(z) for x in conditions.given)
    return torch.lerp(z, content, mask.expand_as(z))


@dataclass(frozen=True, eq=False)
class WindowConditions:
    """Conditions of several prompts; each window uses the prompt of its middle frame."""

    spans: Spans
    middles: Sequence[int]
    """The middle pixel frame of each latent frame."""
    each: Mapping[str | None, Conditions]

    @staticmethod
    def of_request(system: System, request: Request, each: Mapping[str | None, Conditions]) -> WindowConditions:
        spans = spans_of(request)
        assert spans is not None
        cells = system.lattice.grid.time.spans(request.shape.frames)
        return WindowConditions(spans, [cell.start + len(cell) // 2 for cell in cells], each)

    def of(self, frames: Sequence[int] | None) -> Conditions:
        """Return the conditions of a window of these latent frames; None means all frames."""
        at = range(len(self.middles)) if frames is None else frames
        return self.each[self.spans.at(self.middles[at[len(at) // 2]])]


@dataclass(frozen=True, eq=False)
class ReconstructionTargets:
    """Targets of reconstruction guidance: the given region, the small clip, or both."""

    given: KnownRegion | None
    small: LowResolution | None
    weight: float
    """Weight of the given region; the small clip has its own."""

    def around(self, denoise: Denoiser, frames: Sequence[int]) -> Denoiser:
        """Wrap the denoiser of these latent frames with reconstruction guidance."""
        at, known, held = list(frames), [], None
        if self.given is not None:
            held = self.given.mask[:, :, at]
            known.append(Measurement.of_piece(self.given.content[:, :, at], held, self.weight))
        if self.small is not None:
            here, there = self.small.among(frames)
            downsample = partial(downsampled, here, self.small.factor)
            known.append(Measurement(downsample, self.small.video[:, :, there], self.small.weight))
        return Reconstruction(denoise, known, held)


def downsampled(frames: Sequence[int], factor: int, video_BCTHW: Tensor) -> Tensor:
    """Select frames and average ``factor``×``factor`` pixels into one."""
    kept = video_BCTHW[:, :, list(frames)]
    return reduce(kept, "b c t (h p) (w q) -> b c t h w", "mean", p=factor, q=factor)


def known_regions(
    system: System, request: Request, canvas: Canvas, *, clean: bool
) -> tuple[list[KnownRegion], ReconstructionTargets]:
    """Return the regions that are written over the sampler state, and the targets of reconstruction guidance."""
    way = canvas.block.way
    small = None if system.family.sampling.defaults(system.config).takes_small else canvas.small
    by_network = way == "native" and not clean  # the network gets given frames as extra channels
    given = [] if by_network or canvas.empty else [given_region(system, canvas, clean=clean)]
    target = given[0] if way == "reconstruction" and given else None
    targets = ReconstructionTargets(target, small, request.reconstruction_weight)
    return [*held_regions(system, canvas, clean=clean), *given], targets


def given_region(system: System, canvas: Canvas, *, clean: bool = False) -> KnownRegion:
    """Return the given pixels as a latent region without release. ``clean``: the network gets it without noise."""
    return KnownRegion(*encoded_piece(system, canvas.given), release=None, noise="clean" if clean else "fresh")


def held_regions(system: System, canvas: Canvas, *, clean: bool = False) -> list[KnownRegion]:
    """Return the held pieces as latent regions, each with the clip's own initial noise (or ``clean``)."""
    pieces = zip(canvas.held, canvas.block.releases, strict=True)
    noise: Literal["clean", "fixed"] = "clean" if clean else "fixed"
    return [KnownRegion(*encoded_piece(system, piece), release, noise) for piece, release in pieces]


def encoded_piece(system: System, piece: Piece) -> tuple[Tensor, Tensor]:
    """Encode the known frames of a piece. Returns its latents and latent mask."""
    content, mask = encode_given(system.encode, system.lattice.grid, piece.video, piece.mask)
    return content.float(), mask.to(content.device)


def step_reporter(on_event: OnEvent, before: int, after: int) -> OnStep:
    """Return a callback that reports steps as events, counting ``before`` and ``after`` steps of other passes."""

    def on_step(index: int, total: int, level: NoiseLevel, x0: Tensor) -> None:
        on_event(Step(before + index, before + total + after, float(level.log_snr[0]), x0))

    return on_step


def arranged(system: System, request: Request, noise: Tensor, draws: Noise) -> Tensor:
    """Arrange the initial noise over time as the request's ``noise_type`` states."""
    if request.noise_type is None:
        return noise
    length, overlap = window_sizes(request, system.lattice)
    return reschedule_noise(noise, request.noise_type, length, length - overlap, draws)


def interruptible(denoise: Denoiser) -> Denoiser:
    """Check for cancellation before each call of the denoiser: windows and branches make several per step."""

    def checked(z_BCTHW: Tensor, level: NoiseLevel) -> Tensor:
        checkpoint()
        return denoise(z_BCTHW, level)

    return checked


def evaluation(system: System, conditions: Conditions, frames: Sequence[int] | None) -> Evaluate:
    """Return how guidance branches are evaluated: as the memory plan says."""
    branches = branches_of(system)
    if branches != "in one batch":
        return in_parallel if branches == "in parallel" else one_by_one

    @cache
    def joined(names: tuple[str, ...]) -> Denoiser | None:
        condition = system.join_branches([conditions.branches[name] for name in names])
        return None if condition is None else interruptible(system.denoiser(condition, frames))

    return InOneBatch(joined, in_parallel)


def guide(  # noqa: PLR0917
    system: System,
    conditions: Conditions | WindowConditions,
    request: Request,
    guidance: Guidance,
    levels: NoiseLevel,
    reconstruction: ReconstructionTargets | None = None,
    clean: Overwrite | None = None,
) -> Denoiser:
    """Build the denoiser with guidance, reconstruction, threshold and windows.

    ``clean`` says which latent frames are held clean at a level, for models with conditioning frames. They are put
    around the guidance, so that it sees the network's predictions for these frames too, as Open-Sora's does.
    Reconstruction runs inside each window, so a long clip is never differentiated as a whole.
    """
    limit = system.family.sampling.defaults(system.config).threshold

    def make(frames: Sequence[int] | None) -> Denoiser:
        current = conditions.of(frames) if isinstance(conditions, WindowConditions) else conditions
        merged = guidance.merged(current.branches)
        branches = {name: interruptible(system.denoiser(current.branches[name], frames)) for name in merged.branches}
        denoise: Denoiser = Guided(branches, merged.of(frames), evaluation(system, current, frames), levels)
        if clean is not None:
            at = slice(None) if frames is None else list(frames)
            denoise = CleanFrames(
                denoise, lambda level: clean.clean(level)[:, at], lambda level: clean.told_clean(level)[:, at]
            )
        if reconstruction is not None:
            denoise = reconstruction.around(denoise, range(total) if frames is None else frames)
        return denoise if limit is None else Thresholded(denoise, limit)

    total, uniform = system.latent_shape(request).frames, request.window_places == "uniform"
    if request.window is None or request.window_in == "attention":
        return make(None)
    length, overlap = window_sizes(request, system.lattice)
    stride = request.window_stride
    return Windowed(make, total, length, overlap, request.window_weights, request.loop, uniform, stride)
