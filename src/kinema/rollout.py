"""Sample and decode a stage block by block; a clip that fits the model is a single block."""

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
    """Return the latents B×C×T×h×w of a clip of one block."""
    rollout = Rollout(work, on_event)
    return _keeping_partial(rollout, lambda: next(_sampled_blocks(rollout, noise, draws)))


def pixels(work: StageRun, noise: Tensor | None, draws: Noise, on_event: OnEvent) -> Tensor:
    """Return the frames of a stage, B×3×T×H×W in [-1, 1]. ``noise`` covers all latents; None samples it.

    Each block is conditioned on the last frames of the previous block (VDM §3.1) or continues from its last frame;
    shared frames are kept unchanged. Blocks run backward if only the end of the canvas is given.
    """
    rollout = Rollout(work, on_event)

    def run() -> Tensor:
        for z in _sampled_blocks(rollout, noise, draws):
            on_event(Phase("decode"))
            rollout.end(z)
        return rollout.video[:, :, : work.stage.frames]

    return _keeping_partial(rollout, run)


class Rollout:
    """The state of a running stage: the frames known so far, and the progress of the current block."""

    def __init__(self, work: StageRun, on_event: OnEvent) -> None:
        stage = work.stage
        more = max((block.start + block.frames for block in stage.blocks), default=stage.frames) - stage.frames
        canvas = work.canvas.longer(more)
        self.work, self.on_event, self.canvas = work, on_event, canvas
        self.video, self.mask, self.anchor = canvas.video.clone(), canvas.mask.clone(), canvas.first
        self.part = canvas
        self.step: Step | None = None
        """The last completed step, counted over all blocks."""
        self._x0: Tensor | None = None
        """The current block's x0 estimate."""
        self._decoded: Block | None = None
        """The last decoded block."""

    def begin(self, block: Block) -> Canvas:
        """Return the block's part of the canvas, in which the frames of earlier blocks are known."""
        anchor = None if self.work.stage.at_once else self.anchor
        self.part = self.canvas.part(replace(block, anchor=anchor), Piece(self.video, self.mask))
        return self.part

    def hear(self, event: Event) -> None:
        """Store the last step and pass the event on."""
        if isinstance(event, Step):
            self.step, self._x0 = event, event.x0
        self.on_event(event)

    def end(self, z_BCTHW: Tensor) -> None:
        """Decode a block and store its frames in the clip."""
        stage, part = self.work.stage, self.part
        decoded = self.work.system.decode(z_BCTHW, stage.of(part.block))
        self.anchor = decoded[:, :, 0] if self.anchor is None else self.anchor
        if not stage.at_once:
            part = replace(part, block=replace(part.block, anchor=self.anchor))
        decoded = match_colours(decoded, part, stage.request.colours)
        frames = slice(part.block.start, part.block.start + part.block.frames)
        self.video[:, :, frames] = torch.lerp(decoded, part.video, part.mask.expand_as(decoded))
        self.mask[:, :, frames] = 1
        self._x0, self._decoded = None, part.block

    def partial(self) -> Clip | None:
        """Return the finished blocks and the current block's last estimate, without unknown frames.

        None before the first step.
        """
        if self._x0 is not None:
            self.on_event(Phase("decode", "the partial clip"))
            self.end(self._x0)
        if self._decoded is None or self.step is None:
            return None
        work, total = self.work, self.work.stage.frames
        mask = torch.zeros_like(self.mask)
        mask[:, :, self._decoded.start : self._decoded.start + self._decoded.frames] = 1
        known, new = (work.requested(each[:, :, :total]).amin((0, 1, 3, 4)).tolist() for each in (self.mask, mask))
        if not any(new):
            return None
        start = end = new.index(1)
        while start and known[start - 1] == 1:
            start -= 1
        while end < len(known) and known[end] == 1:
            end += 1
        entry = {"stage": work.stage.name, "step": self.step.index, "steps": self.step.total, "start": start}
        video = work.finished(self.video[:, :, :total])[:, :, start:end]
        return Clip(video, work.stage.request.fps or 0.0, {"partial": entry})


def _keeping_partial(rollout: Rollout, run: Callable[[], Tensor]) -> Tensor:
    """Return ``run()``. If it is cancelled, raise `Cancelled` with the partial clip, if that is to be kept."""
    try:
        return run()
    except Cancelled as cancelled:
        keep = cancelled.keep_partial
    # Outside the handler, so that the exception's traceback has released the tensors of the interrupted calls.
    with cancellable(None):
        clip = rollout.partial() if keep else None
    raise Cancelled(cancelled_at(rollout.step), clip, keep_partial=keep)


def cancelled_at(step: Step | None) -> str:
    return "cancelled before the first step" if step is None else f"cancelled at step {step.index} of {step.total}"


def _sampled_blocks(rollout: Rollout, noise: Tensor | None, draws: Noise) -> Iterator[Tensor]:
    """Yield the latents of each block; the caller decodes a block before asking for the next."""
    work, stage, on_event = rollout.work, rollout.work.stage, rollout.on_event
    prompts = encoded_prompts(work, on_event)
    for number, block in enumerate(stage.blocks):
        part = rollout.begin(block)
        last = min(block.start + block.frames, stage.frames) - 1
        if not stage.at_once:
            on_event(Note(f"block {number + 1} of {len(stage.blocks)}: frames {block.start} to {last}"))
        yield _sampled(work, prompts, part, noise, draws, over_blocks(rollout.hear, number, len(stage.blocks)))


def encoded_prompts(work: StageRun, on_event: OnEvent) -> Mapping[str | None, Any]:
    """Return the encoded prompts of a stage: by text if they change with windows or blocks, else one under None."""
    system, whole = work.system, work.stage.whole
    spans = spans_of(whole)
    if spans is None or system.family.sampling.defaults(system.config).prompt_spans:
        return {None: system.encode_prompt(whole, on_event)}
    on_event(Note(f"the prompt changes with the {'windows' if work.stage.at_once else 'blocks'}"))
    one = replace(whole, prompt_spans={})
    encoded: dict[str | None, Any] = {}
    for text in spans.texts:
        checkpoint()
        encoded[text] = system.encode_prompt(replace(one, prompt=text), on_event)
    return encoded


def _sampled(  # noqa: PLR0917
    work: StageRun,
    prompts: Mapping[str | None, Any],
    part: Canvas,
    noise: Tensor | None,
    draws: Noise,
    on_event: OnEvent,
) -> Tensor:
    """Return the latents of one block, sampled with its part of the noise and of guidance that varies over frames."""
    stage, system, block = work.stage, work.system, part.block
    request = stage.of(block)
    shape = system.latent_shape(request).bcthw
    guidance = system.guidance(stage.whole)
    if not stage.at_once:
        at = system.lattice.grid.time.latent(block.start)
        guidance = guidance.of(range(at, at + shape[2]))
        noise = None if noise is None else noise[:, :, at : at + shape[2]]
    own = draws.normal(shape[1:]) if noise is None else noise
    if own.shape[2] < shape[2]:  # the last block extends beyond the clip, but the caller's noise does not
        own = torch.cat([own, draws.normal(shape[1:]).to(own)[:, :, own.shape[2] :]], dim=2)
    if block.prompt in prompts:
        prompts = {None: prompts[block.prompt]}
    return sample(system, request, prompts, part, own, draws, guidance=guidance, on_event=on_event)


def over_blocks(on_event: OnEvent, number: int, count: int) -> OnEvent:
    """Return a listener that renumbers the steps of block ``number`` of ``count`` over the whole clip."""

    def renumber(event: Event) -> None:
        if isinstance(event, Step):
            event = replace(event, index=number * event.total + event.index, total=count * event.total)
        on_event(event)

    return renumber


def with_small_clip(work: StageRun, low_BCTHW: Tensor) -> StageRun:
    """Return a super-resolution stage with the small clip that it enlarges."""
    stage = work.stage
    assert stage.enlarging is not None
    # A backward clip has its surplus frames at the start; the small clip has none, so its first frame is repeated.
    more = stage.frames - stage.request.shape.frames if stage.request.backward else 0
    low_BCTHW = torch.cat([low_BCTHW[:, :, :1].expand(-1, -1, more, -1, -1), low_BCTHW], dim=2)
    return replace(work, canvas=replace(work.canvas, small=LowResolution(low_BCTHW, **asdict(stage.enlarging))))
