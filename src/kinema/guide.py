"""One pass of the sampler over a canvas: conditions, guidance, windows, and what is known written over the state.

The order, from the inside out: guidance with its rescale, reconstruction, threshold, windows, overwriting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

import torch
from einops import reduce
from torch import Tensor

from kinema.cancel import checkpoint
from kinema.canvas import Canvas, LowResolution, Piece
from kinema.diffusion.freeinit import passes
from kinema.diffusion.guidance import Guidance, Guided, Measurement, Reconstruction, Thresholded
from kinema.diffusion.noise import Noise, rescheduled
from kinema.diffusion.overwrite import CleanFrames, KnownRegion, Overwrite
from kinema.diffusion.parameterise import Denoiser
from kinema.diffusion.samplers import SAMPLERS, OnStep
from kinema.diffusion.schedules import NoiseLevel
from kinema.diffusion.windows import Windowed, window_sizes
from kinema.memory.placing import can_run_branches_together
from kinema.schema import OnEvent, Phase, Request, Step, ignore
from kinema.settle import free_init, sampler_options
from kinema.spans import Spans, spans_of
from kinema.system import Conditions, System
from kinema.vae.placing import placed
from kinema.values import counted


def sample(  # noqa: PLR0917
    system: System,
    request: Request,
    words: Mapping[str | None, Any],
    canvas: Canvas,
    noise: Tensor,
    draws: Noise,
    *,
    guidance: Guidance | None = None,
    on_event: OnEvent = ignore,
) -> Tensor:
    """The sampler over the whole canvas, once or as often as FreeInit asks: latents B×C×T×h×w, in float32 always.

    ``words`` are the prompt as the family encodes it, under None; or several by text, which change with the windows.
    ``guidance`` is that of this part of a longer clip.
    """
    on_event(Phase("condition"))
    told = {text: system.condition(each, request, canvas, on_event) for text, each in words.items()}
    conditions = told[None] if None in told else InWindows.of_request(system, request, told)
    clean = system.family.sampling.defaults(system.config).clean_frames
    pieces, drawn = known(system, request, canvas, clean=clean)
    guidance = system.family.sampling.guidance(system.config, request) or guidance or system.guidance(request)
    first = z = in_order(system, request, noise, draws).to(system.device, torch.float32)
    again = free_init(system, request)
    counts = passes(request.free_init or 1, cast(int, request.steps), fast=request.free_init_fast)
    for number, steps in enumerate(counts):
        levels = system.levels(replace(request, steps=steps))
        noise = again(first, z, draws) if again is not None and number else first
        over = Overwrite(pieces, levels, draws, noise)
        seen = over.clean if clean else None
        denoise = over.around(guide(system, conditions, request, guidance, levels, drawn, seen))
        z = over.start(system.prior(request, noise))
        which = f", pass {number + 1} of {len(counts)}" if len(counts) > 1 else ""
        ahead = steps - over.first
        said = f"{counted(ahead, 'step')} of {request.sampler}{which}"
        on_event(Phase("sample", said if ahead else "nothing to sample: what is known is kept to the end"))
        if over.first == steps:
            return z
        report = stepping(on_event, sum(counts[:number]), sum(counts[number + 1 :]))
        options = {**sampler_options(system, request), "state": over.run(over.first)}
        left = levels[over.first :]
        z = SAMPLERS[cast(str, request.sampler)](denoise, z, left, noise=draws, on_step=report, **options)
    return with_given(z, next(iter(told.values())))


def with_given(z: Tensor, conditions: Conditions) -> Tensor:
    """The finished latents with those of given frames in their place (`Conditions.given`)."""
    if conditions.given is None:
        return z
    content, mask = (x.to(z) for x in conditions.given)
    return torch.lerp(z, content, mask.expand_as(z))


@dataclass(frozen=True, eq=False)
class InWindows:
    """Conditions of several prompts, of which each window has the one of its middle frame."""

    spans: Spans
    middles: Sequence[int]
    """The middle pixel frame of each latent frame."""
    each: Mapping[str | None, Conditions]

    @staticmethod
    def of_request(system: System, request: Request, each: Mapping[str | None, Conditions]) -> InWindows:
        spans = spans_of(request)
        assert spans is not None
        cells = system.lattice.grid.time.spans(request.shape.frames)
        return InWindows(spans, [cell.start + len(cell) // 2 for cell in cells], each)

    def of(self, frames: Sequence[int] | None) -> Conditions:
        """Those of a window of these latent frames; None is all of them."""
        at = range(len(self.middles)) if frames is None else frames
        return self.each[self.spans.at(self.middles[at[len(at) // 2]])]


@dataclass(frozen=True, eq=False)
class Drawn:
    """What reconstruction guidance draws the estimates to: what is given, and a small clip, either or both."""

    given: KnownRegion | None
    small: LowResolution | None
    weight: float
    """Of what is given; the small clip has its own."""

    def around(self, denoise: Denoiser, frames: Sequence[int]) -> Denoiser:
        """The denoiser of these latent frames, drawn to what of them is known."""
        at, known, held = list(frames), [], None
        if self.given is not None:
            held = self.given.mask[:, :, at]
            known.append(Measurement.of_piece(self.given.content[:, :, at], held, self.weight))
        if self.small is not None:
            here, there = self.small.among(frames)
            known.append(
                Measurement(partial(smaller, here, self.small.factor), self.small.video[:, :, there], self.small.weight)
            )
        return Reconstruction(denoise, known, held)


def smaller(frames: Sequence[int], factor: int, video_BCTHW: Tensor) -> Tensor:
    """The small clip of a large one: these frames of it, ``factor``×``factor`` pixels averaged into one."""
    kept = video_BCTHW[:, :, list(frames)]
    return reduce(kept, "b c t (h p) (w q) -> b c t h w", "mean", p=factor, q=factor)


def known(system: System, request: Request, canvas: Canvas, *, clean: bool) -> tuple[list[KnownRegion], Drawn]:
    """The pieces that are written over the state, and what guidance draws the estimates to."""
    way = canvas.block.way
    shown = way == "native" and not clean  # by the network's own channels
    given = [] if shown or canvas.empty else [given_piece(system, canvas, clean=clean)]
    drawn = Drawn(given[0] if way == "reconstruction" and given else None, canvas.small, request.reconstruction_weight)
    return [*held_pieces(system, canvas, clean=clean), *given], drawn


def given_piece(system: System, canvas: Canvas, *, clean: bool = False) -> KnownRegion:
    """What a canvas gives, on the latent grid: never released. ``clean``: the network sees it without noise."""
    return KnownRegion(*on_grid(system, canvas.given), release=None, noise="clean" if clean else "fresh")


def held_pieces(system: System, canvas: Canvas, *, clean: bool = False) -> list[KnownRegion]:
    """What a canvas holds for a while, on the latent grid, each with the noise of the clip itself (or ``clean``)."""
    told = zip(canvas.held, canvas.block.releases, strict=True)
    noise: Literal["clean", "fixed"] = "clean" if clean else "fixed"
    return [KnownRegion(*on_grid(system, piece), release, noise) for piece, release in told]


def on_grid(system: System, piece: Piece) -> tuple[Tensor, Tensor]:
    """The latents of a piece, and the cells that it gives: only what is known is encoded."""
    content, mask = placed(system.encode, system.lattice.grid, piece.video, piece.mask)
    return content.float(), mask.to(content.device)


def stepping(on_event: OnEvent, before: int, after: int) -> OnStep:
    """A sampler's steps as events, with those of the passes before and after it."""

    def on_step(index: int, total: int, level: NoiseLevel, x0: Tensor) -> None:
        on_event(Step(before + index, before + total + after, float(level.log_snr[0]), x0))

    return on_step


def in_order(system: System, request: Request, noise: Tensor, draws: Noise) -> Tensor:
    """The noise of a clip, in the order over time that the request asks for."""
    if request.noise_type is None:
        return noise
    length, overlap = window_sizes(request, system.lattice)
    return rescheduled(noise, request.noise_type, length, length - overlap, draws)


def checked(denoise: Denoiser) -> Denoiser:
    """The denoiser with a checkpoint before each call: a step has many, in windows and of several branches."""

    def denoised(z_BCTHW: Tensor, level: NoiseLevel) -> Tensor:
        checkpoint()
        return denoise(z_BCTHW, level)

    return denoised


def guide(  # noqa: PLR0917
    system: System,
    conditions: Conditions | InWindows,
    request: Request,
    guidance: Guidance,
    levels: NoiseLevel,
    drawn: Drawn | None = None,
    clean: Callable[[NoiseLevel], Tensor] | None = None,
) -> Denoiser:
    """The guided denoiser: guidance, reconstruction and bound, in windows where the request asks for them.

    ``clean`` says of a level which latent frames are held clean, [B, T], for a model that sees them so.

    Reconstruction acts inside each window, so that a long clip is never differentiated as a whole.
    """
    limit = system.family.sampling.defaults(system.config).threshold

    def make(frames: Sequence[int] | None) -> Denoiser:
        told = conditions.of(frames) if isinstance(conditions, InWindows) else conditions
        merged = guidance.merged(told.branches)
        branches = {name: checked(system.denoiser(told.branches[name], frames)) for name in merged.branches}
        if clean is not None:
            at = slice(None) if frames is None else list(frames)
            branches = {name: CleanFrames(one, lambda level: clean(level)[:, at]) for name, one in branches.items()}
        denoise: Denoiser = Guided(branches, merged.of(frames), can_run_branches_together(system), levels)
        denoise = denoise if drawn is None else drawn.around(denoise, range(total) if frames is None else frames)
        return denoise if limit is None else Thresholded(denoise, limit)

    total, uniform = system.latent_shape(request).frames, request.window_places == "uniform"
    if request.window is None or request.window_in == "attention":
        return make(None)
    length, overlap = window_sizes(request, system.lattice)
    stride = request.window_stride
    return Windowed(make, total, length, overlap, request.window_weights, request.loop, uniform, stride)
