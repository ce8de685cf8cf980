"""One pass of the sampler over a canvas: conditions, guidance, windows, and what is known written over the state.

The order, from the inside out: guidance with its rescale, reconstruction, threshold, windows, overwriting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from kinema.diffusion.freeinit import passes
from kinema.diffusion.guidance import Guidance, Guided, Measurement, Reconstruction, Thresholded
from kinema.diffusion.noise import Noise, rescheduled
from kinema.diffusion.overwrite import Known, Overwrite
from kinema.diffusion.parameterise import Denoiser
from kinema.diffusion.samplers import SAMPLERS, OnStep
from kinema.diffusion.schedules import Level, edit_steps
from kinema.diffusion.windows import Windowed, window_sizes
from kinema.job import free_init, honour
from kinema.memory.placing import roomy
from kinema.schema import Canvas, OnEvent, Phase, Request, Step, ignore
from kinema.system import Conditions, System
from kinema.vae.placing import latent_mask
from kinema.values import counted


def sample(
    system: System,
    request: Request,
    canvas: Canvas,
    noise: Tensor,
    draws: Noise,
    *,
    guidance: Guidance | None = None,
    on_event: OnEvent = ignore,
) -> Tensor:
    """The sampler over the whole canvas, once or as often as FreeInit asks: latents B×C×T×h×w, in float32 always."""
    on_event(Phase("condition"))
    way = honour(system, request, canvas, one_pass=True)
    request = replace(request, honour=cast(Any, way))  # the family sees how its canvas is held
    conditions = system.condition(request, canvas, on_event)
    pieces = [] if way == "native" or canvas.empty else [given_piece(system, canvas)]
    held = (pieces[0], request.reconstruction_weight) if way == "reconstruction" and pieces else None
    guidance = system.family.sampling.guidance(system.config, request) or guidance or system.guidance(request)
    source = None if canvas.source is None else system.encode(canvas.source)
    first = z = in_order(system, request, noise, draws).to(system.device, torch.float32)
    again = free_init(system, request)
    counts = passes(request.free_init or 1, cast(int, request.steps), fast=request.free_init_fast)
    for number, steps in enumerate(counts):
        levels = system.levels(replace(request, steps=steps))
        noise = again(first, z, draws) if again is not None and number else first
        edited = [] if source is None else [edited_piece(source, canvas.strength, steps)]
        over = Overwrite([*edited, *pieces], levels, draws, noise)
        denoise = over.around(guide(system, conditions, request, guidance, levels, held))
        z = over.start(system.prior(noise))
        which = f", pass {number + 1} of {len(counts)}" if len(counts) > 1 else ""
        ahead = steps - over.first
        told = f"{counted(ahead, 'step')} of {request.sampler}{which}"
        kept = f"nothing to sample: strength {canvas.strength:g} keeps the source"
        on_event(Phase("sample", told if ahead else kept))
        if over.first == steps:
            return z
        report = stepping(on_event, sum(counts[:number]), sum(counts[number + 1 :]))
        options = {**system.sampler_options(request), "state": over.run(over.first)}
        left = levels[over.first :]
        z = SAMPLERS[cast(str, request.sampler)](denoise, z, left, noise=draws, on_step=report, **options)
    return z


def given_piece(system: System, canvas: Canvas) -> Known:
    """What a canvas gives, on the latent grid: never released."""
    mask = latent_mask(system.lattice.grid, canvas.mask).to(system.device)
    return Known(system.encode(canvas.video).float(), mask, release=None)


def edited_piece(source: Tensor, strength: float, steps: int) -> Known:
    """The clip of an edit, held until its last ``strength`` of the steps begin (SDEdit)."""
    return Known(source.float(), torch.ones_like(source[:, :1]), steps - edit_steps(steps, strength), "fixed")


def stepping(on_event: OnEvent, before: int, after: int) -> OnStep:
    """A sampler's steps as events, with those of the passes before and after it."""

    def on_step(index: int, total: int, level: Level, x0: Tensor) -> None:
        on_event(Step(before + index, before + total + after, float(level.log_snr[0]), x0))

    return on_step


def in_order(system: System, request: Request, noise: Tensor, draws: Noise) -> Tensor:
    """The noise of a clip, in the order over time that the request asks for."""
    if request.noise_type is None:
        return noise
    length, overlap = window_sizes(request, system.lattice)
    return rescheduled(noise, request.noise_type, length, length - overlap, draws)


def guide(  # noqa: PLR0917
    system: System,
    conditions: Conditions,
    request: Request,
    guidance: Guidance,
    levels: Level,
    reconstructed: tuple[Known, float] | None = None,
) -> Denoiser:
    """The guided denoiser: guidance, reconstruction and bound, in windows where the request asks for them.

    ``reconstructed`` is what guidance by reconstruction is to bring out, and its weight.

    Reconstruction acts inside each window, so that a long clip is never differentiated as a whole.
    """
    limit = system.family.sampling.defaults(system.config).threshold

    def make(frames: Sequence[int] | None) -> Denoiser:
        def cut(x: Tensor) -> Tensor:
            return x if frames is None else x[:, :, list(frames)]

        branches = {name: system.denoiser(conditions.branches[name], frames) for name in guidance.branches}
        denoise: Denoiser = Guided(branches, guidance.of(frames), roomy(system), levels)
        if reconstructed is not None and reconstructed[1]:
            piece, weight = reconstructed
            mask = cut(piece.mask)
            denoise = Reconstruction(denoise, [Measurement.of_piece(cut(piece.content), mask, weight)], mask)
        return denoise if limit is None else Thresholded(denoise, limit)

    if request.window is None or request.window_in == "attention":
        return make(None)
    length, overlap = window_sizes(request, system.lattice)
    total, uniform = system.latent_shape(request).frames, request.window_places == "uniform"
    stride = request.window_stride
    return Windowed(make, total, length, overlap, request.window_weights, request.loop, uniform, stride)
