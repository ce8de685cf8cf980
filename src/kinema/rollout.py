"""A stage of a job, block by block: one block for a clip that is made at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from kinema.canvas import Canvas, Piece, Small
from kinema.diffusion.noise import Noise
from kinema.guide import sample
from kinema.job import Work
from kinema.media.matching import match_colours
from kinema.schema import Event, Note, OnEvent, Phase, Step
from kinema.spans import spans_of


def latents(work: Work, noise: Tensor | None, draws: Noise, on_event: OnEvent) -> Tensor:
    """The latents B×C×T×h×w of a clip that is made at once."""
    words = spoken(work, on_event)
    return _sampled(work, words, work.canvas, noise, draws, on_event)


def pixels(work: Work, noise: Tensor | None, draws: Noise, on_event: OnEvent) -> Tensor:
    """The frames of a stage, B×3×T×H×W in [-1, 1]. ``noise`` is of all latents; None draws it.

    Each block holds the last frames of the one before (VDM §3.1), or goes on from its last. What one block made stays
    as it is in the next. Blocks run from where frames are known: backward when only the end of the canvas is given.
    """
    stage, system = work.stage, work.system
    words = spoken(work, on_event)
    total, blocks = stage.frames, stage.blocks
    canvas = work.canvas.longer(max((block.start + block.frames for block in blocks), default=total) - total)
    video, mask, anchor = canvas.video.clone(), canvas.mask.clone(), canvas.first
    for number, block in enumerate(blocks):
        part = canvas.part(replace(block, anchor=anchor if not stage.at_once else None), Piece(video, mask))
        last = min(block.start + block.frames, total) - 1
        if not stage.at_once:
            on_event(Note(f"block {number + 1} of {len(blocks)}: frames {block.start} to {last}"))
        z = _sampled(work, words, part, noise, draws, across(on_event, number, len(blocks)))
        on_event(Phase("decode"))
        made = system.decode(z, stage.of(block))
        anchor = made[:, :, 0] if anchor is None else anchor
        if not stage.at_once:
            part = replace(part, block=replace(block, anchor=anchor))
        made = match_colours(made, part, stage.request.colours)
        frames = slice(block.start, block.start + block.frames)
        video[:, :, frames] = torch.lerp(made, part.video, part.mask.expand_as(made))
        mask[:, :, frames] = 1
    return video[:, :, :total]


def spoken(work: Work, on_event: OnEvent) -> Mapping[str | None, Any]:
    """The prompts of a stage as the family encodes them, each once: by text where they change with windows or blocks,
    else one, under None.
    """
    system, whole = work.system, work.stage.whole
    spans = spans_of(whole)
    if spans is None or system.family.sampling.defaults(system.config).prompt_spans:
        return {None: system.encode_prompt(whole, on_event)}
    on_event(Note(f"the prompt changes with the {'windows' if work.stage.at_once else 'blocks'}"))
    one = replace(whole, prompt_spans={})
    return {text: system.encode_prompt(replace(one, prompt=text), on_event) for text in spans.texts}


def _sampled(  # noqa: PLR0917
    work: Work, words: Mapping[str | None, Any], part: Canvas, noise: Tensor | None, draws: Noise, on_event: OnEvent
) -> Tensor:
    """The latents of one block: of a long clip, its part of the noise and of guidance that changes over the clip."""
    stage, system, block = work.stage, work.system, part.block
    request = stage.of(block)
    shape = system.latent_shape(request).bcthw
    guidance = system.guidance(stage.whole)
    if not stage.at_once:
        at = system.lattice.grid.time.latent(block.start)
        guidance = guidance.of(range(at, at + shape[2]))
        noise = None if noise is None else noise[:, :, at : at + shape[2]]
    own = draws.normal(shape[1:]) if noise is None else noise
    if own.shape[2] < shape[2]:  # the last block goes on beyond the clip, and the caller's noise does not
        own = torch.cat([own, draws.normal(shape[1:]).to(own)[:, :, own.shape[2] :]], dim=2)
    told: Mapping[str | None, Any] = {None: words[block.prompt]} if block.prompt in words else words
    return sample(system, request, told, part, own, draws, guidance=guidance, on_event=on_event)


def across(on_event: OnEvent, number: int, count: int) -> OnEvent:
    """Tells the steps of block ``number`` of ``count`` as the whole clip's, so that the time to go is its own."""

    def told(event: Event) -> None:
        if isinstance(event, Step):
            event = replace(event, index=number * event.total + event.index, total=count * event.total)
        on_event(event)

    return told


def enlarged(work: Work, low_BCTHW: Tensor) -> Work:
    """A stage of super-resolution with the clip that it enlarges."""
    stage = work.stage
    assert stage.enlarging is not None
    # A backward clip has the frames that nobody asked for before it, where the small one has none.
    more = stage.frames - stage.request.shape.frames if stage.request.backward else 0
    low_BCTHW = torch.cat([low_BCTHW[:, :, :1].expand(-1, -1, more, -1, -1), low_BCTHW], dim=2)
    return replace(work, canvas=replace(work.canvas, small=Small(low_BCTHW, **asdict(stage.enlarging))))
