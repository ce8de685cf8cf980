"""Clips longer than the model, made block by block."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kinema.diffusion.noise import Noise
from kinema.guide import sample
from kinema.job import block_starts, longer, of_block
from kinema.media.matching import match_colours
from kinema.schema import Canvas, Event, Note, OnEvent, Request, Step
from kinema.system import System


def roll_out(
    system: System, request: Request, canvas: Canvas, noise: Tensor | None, draws: Noise, on_event: OnEvent
) -> Tensor:
    """A clip made block by block: each holds the last frames of the one before (VDM §3.1), or goes on from its last.

    Returns pixels: what one block made stays as it is in the next. Blocks run from where frames are known:
    backward when only the end of the canvas is given.
    """
    total, length = request.shape.frames, system.lattice.max_frames or request.shape.frames
    starts = block_starts(system, request, canvas, length)
    canvas = longer(canvas, max(starts) + length - total)
    known, mask, anchor = canvas.video.clone(), canvas.mask.clone(), canvas.first
    guidance = system.guidance(request)
    block = of_block(request, length)
    shape = system.latent_shape(block).bcthw
    for number, start in enumerate(starts):
        frames = slice(start, start + length)
        part = replace(canvas, video=known[:, :, frames], mask=mask[:, :, frames], anchor=anchor, start=start)
        if canvas.source is not None:
            part = replace(part, source=canvas.source[:, :, frames])
        elif part.kind == "all":
            continue
        on_event(Note(f"block {number + 1} of {len(starts)}: frames {start} to {min(start + length, total) - 1}"))
        at = system.lattice.grid.time.latent(start)
        own = draws.normal(shape[1:]) if noise is None else noise[:, :, at : at + shape[2]]
        if own.shape[2] < shape[2]:  # the last block goes on beyond the clip, and the caller's noise does not
            own = torch.cat([own, draws.normal(shape[1:]).to(own)[:, :, own.shape[2] :]], dim=2)
        cut = guidance.of(range(at, at + shape[2]))
        z = sample(system, block, part, own, draws, guidance=cut, on_event=across(on_event, number, len(starts)))
        made = system.decode(z, block)
        anchor = made[:, :, 0] if anchor is None else anchor
        made = match_colours(made, replace(part, anchor=anchor), request.colours)
        known[:, :, frames] = torch.lerp(made, part.video, part.mask.expand_as(made))
        mask[:, :, frames] = 1
    return known[:, :, :total]


def across(on_event: OnEvent, number: int, count: int) -> OnEvent:
    """Tells the steps of block ``number`` of ``count`` as the whole clip's, so that the time to go is its own."""

    def told(event: Event) -> None:
        if isinstance(event, Step):
            event = replace(event, index=number * event.total + event.index, total=count * event.total)
        on_event(event)

    return told
