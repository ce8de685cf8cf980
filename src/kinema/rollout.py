"""A stage of a job, block by block: one block for a clip that is made at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from kinema.cancel import cancellable, checkpoint
from kinema.canvas import Block, Canvas, LowResolution, Piece
from kinema.diffusion.noise import Noise
from kinema.events import Event, Note, OnEvent, Phase, Step
from kinema.guide import sample
from kinema.job import StageRun
from kinema.media.matching import match_colours
from kinema.schema import Cancelled, Clip
from kinema.spans import spans_of


def latents(work: StageRun, noise: Tensor | None, draws: Noise, on_event: OnEvent) -> Tensor:
    """The latents B×C×T×h×w of a clip that is made at once."""
    making = Rollout(work, on_event)
    return _kept(making, lambda: next(_sampled_blocks(making, noise, draws)))


def pixels(work: StageRun, noise: Tensor | None, draws: Noise, on_event: OnEvent) -> Tensor:
    """The frames of a stage, B×3×T×H×W in [-1, 1]. ``noise`` is of all latents; None draws it.

    Each block holds the last frames of the one before (VDM §3.1), or goes on from its last. What one block made stays
    as it is in the next. Blocks run from where frames are known: backward when only the end of the canvas is given.
    """
    making = Rollout(work, on_event)

    def made() -> Tensor:
        for z in _sampled_blocks(making, noise, draws):
            on_event(Phase("decode"))
            making.end(z)
        return making.video[:, :, : work.stage.frames]

    return _kept(making, made)


class Rollout:
    """A stage while it is made: the frames that are known by now, and where the block in progress stands."""

    def __init__(self, work: StageRun, on_event: OnEvent) -> None:
        stage = work.stage
        more = max((block.start + block.frames for block in stage.blocks), default=stage.frames) - stage.frames
        canvas = work.canvas.longer(more)
        self.work, self.on_event, self.canvas = work, on_event, canvas
        self.video, self.mask, self.anchor = canvas.video.clone(), canvas.mask.clone(), canvas.first
        self.part = canvas
        self.step: Step | None = None
        """The last that was done, counted over all blocks."""
        self._x0: Tensor | None = None
        """The estimate of the block in progress."""
        self._made: Block | None = None
        """The last block that there are frames of."""

    def begin(self, block: Block) -> Canvas:
        """The part of the canvas that a block is made from, with what earlier blocks made."""
        anchor = None if self.work.stage.at_once else self.anchor
        self.part = self.canvas.part(replace(block, anchor=anchor), Piece(self.video, self.mask))
        return self.part

    def hear(self, event: Event) -> None:
        """Remembers the last step, then passes the event on."""
        if isinstance(event, Step):
            self.step, self._x0 = event, event.x0
        self.on_event(event)

    def end(self, z_BCTHW: Tensor) -> None:
        """Decode a block, and put its frames into the clip."""
        stage, part = self.work.stage, self.part
        made = self.work.system.decode(z_BCTHW, stage.of(part.block))
        self.anchor = made[:, :, 0] if self.anchor is None else self.anchor
        if not stage.at_once:
            part = replace(part, block=replace(part.block, anchor=self.anchor))
        made = match_colours(made, part, stage.request.colours)
        frames = slice(part.block.start, part.block.start + part.block.frames)
        self.video[:, :, frames] = torch.lerp(made, part.video, part.mask.expand_as(made))
        self.mask[:, :, frames] = 1
        self._x0, self._made = None, part.block

    def partial(self) -> Clip | None:
        """What there is: earlier blocks, then the one in progress by its last estimate, without unknown frames.

        None where nothing was made yet.
        """
        if self._x0 is not None:
            self.on_event(Phase("decode", "what there is of the clip"))
            self.end(self._x0)
        if self._made is None or self.step is None:
            return None
        work, total = self.work, self.work.stage.frames
        made = torch.zeros_like(self.mask)
        made[:, :, self._made.start : self._made.start + self._made.frames] = 1
        known, new = (work.asked(mask[:, :, :total]).amin((0, 1, 3, 4)).tolist() for mask in (self.mask, made))
        if not any(new):
            return None
        start = end = new.index(1)
        while start and known[start - 1] == 1:
            start -= 1
        while end < len(known) and known[end] == 1:
            end += 1
        told = {"stage": work.stage.name, "step": self.step.index, "steps": self.step.total, "start": start}
        video = work.finished(self.video[:, :, :total])[:, :, start:end]
        return Clip(video, work.stage.request.fps or 0.0, {"partial": told})


def _kept(making: Rollout, make: Callable[[], Tensor]) -> Tensor:
    """What ``make`` returns; where it is cancelled, `Cancelled` has the partial clip, if one is to be kept."""
    try:
        return make()
    except Cancelled as cancelled:
        keep = cancelled.keep_partial
    # Outside the handler: with the exception go the tensors of the calls that it broke off.
    with cancellable(None):
        clip = making.partial() if keep else None
    raise Cancelled(cancelled_at(making.step), clip, keep_partial=keep)


def cancelled_at(step: Step | None) -> str:
    return "cancelled before the first step" if step is None else f"cancelled at step {step.index} of {step.total}"


def _sampled_blocks(making: Rollout, noise: Tensor | None, draws: Noise) -> Iterator[Tensor]:
    """The latents of each block, which is decoded before the next one begins."""
    work, stage, on_event = making.work, making.work.stage, making.on_event
    words = spoken(work, on_event)
    for number, block in enumerate(stage.blocks):
        part = making.begin(block)
        last = min(block.start + block.frames, stage.frames) - 1
        if not stage.at_once:
            on_event(Note(f"block {number + 1} of {len(stage.blocks)}: frames {block.start} to {last}"))
        yield _sampled(work, words, part, noise, draws, across(making.hear, number, len(stage.blocks)))


def spoken(work: StageRun, on_event: OnEvent) -> Mapping[str | None, Any]:
    """The prompts of a stage as the family encodes them, each once: by text where they change with windows or blocks,
    else one, under None.
    """
    system, whole = work.system, work.stage.whole
    spans = spans_of(whole)
    if spans is None or system.family.sampling.defaults(system.config).prompt_spans:
        return {None: system.encode_prompt(whole, on_event)}
    on_event(Note(f"the prompt changes with the {'windows' if work.stage.at_once else 'blocks'}"))
    one = replace(whole, prompt_spans={})
    words: dict[str | None, Any] = {}
    for text in spans.texts:
        checkpoint()
        words[text] = system.encode_prompt(replace(one, prompt=text), on_event)
    return words


def _sampled(  # noqa: PLR0917
    work: StageRun, words: Mapping[str | None, Any], part: Canvas, noise: Tensor | None, draws: Noise, on_event: OnEvent
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


def enlarged(work: StageRun, low_BCTHW: Tensor) -> StageRun:
    """A stage of super-resolution with the clip that it enlarges."""
    stage = work.stage
    assert stage.enlarging is not None
    # A backward clip has the frames that nobody asked for before it, where the small one has none.
    more = stage.frames - stage.request.shape.frames if stage.request.backward else 0
    low_BCTHW = torch.cat([low_BCTHW[:, :, :1].expand(-1, -1, more, -1, -1), low_BCTHW], dim=2)
    return replace(work, canvas=replace(work.canvas, small=LowResolution(low_BCTHW, **asdict(stage.enlarging))))
