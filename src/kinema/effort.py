"""How much of a job's work each stage is, so that progress over all stages is one figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from kinema.diffusion.windows import window_sizes, windows
from kinema.events import Event, OnEvent, Step
from kinema.job import StageRun
from kinema.memory.plan import weight_bytes


def shares(works: Sequence[StageRun]) -> list[float]:
    """Return each stage's share of the sampling of a job; they add up to 1."""
    if len(works) == 1:
        return [1.0]
    efforts = [effort(work) for work in works]
    return [each / sum(efforts) for each in efforts]


def effort(work: StageRun) -> float:
    """Estimate a stage's sampling time, up to a factor common to all stages: parameters times processed values."""
    system, request = work.system, work.stage.whole
    _, _, total, *sides = work.latent
    frames = sum(system.lattice.grid.time.latent(block.frames) for block in work.stage.blocks)
    if request.window is not None and request.window_in == "denoiser":
        frames = sum(map(len, windows(total, *window_sizes(request, system.lattice), request.loop)))
    steps = max((request.steps or 0) - work.canvas.skipped, 1)
    calls = steps * len(system.guidance(request).branches) * request.clips
    return float(calls * max(frames, 1) * prod(sides) * weight_bytes(system))


def over_stages(on_event: OnEvent, before: float, own: float) -> OnEvent:
    """Return a listener that adds to a stage's steps how much of the job is done.

    ``before`` is the share of earlier stages, ``own`` that of this one.
    """

    def share(event: Event) -> None:
        if isinstance(event, Step):
            event = replace(event, share=before + own * event.index / event.total)
        on_event(event)

    return share
