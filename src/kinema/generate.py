"""The page to read first: from a request to a clip.

    request ─ draw_up ────────── a job, settled, drawn, planned: refused here, before a weight is read
       │
    for each stage ───────────── base, then super-resolution where it is asked for
       │   runtime.running ───── the weights placed, one job at a time
       │   rollout.pixels ────── prompts once; conditions, guidance, sampling and decoding block by block
       │
    clip ─────────────────────── what was given, to the bit; recipe, sound

Families and tasks meet here and nowhere else. Shapes: pixels B×3×T×H×W in [-1, 1], latents B×C×T×h×w.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from kinema.cancel import Cancel, cancellable, checking
from kinema.events import Memory, OnEvent, Phase, ignore
from kinema.job import Asked, Noise, OnSettled, StageRun, accept, draw_up, latents_wanted, noises_of
from kinema.media.sound import carried
from kinema.memory.placing import place
from kinema.previews import Previewed, Previews
from kinema.provenance import frames_hash, recipe
from kinema.rollout import enlarged, latents, pixels
from kinema.schema import Cancelled, Clip
from kinema.system import System


def generate(
    system: System,
    asked: Asked,
    *,
    noise: Noise = None,
    on_event: OnEvent = ignore,
    on_settled: OnSettled = accept,
    output: str = "clip",
    preview: bool | Previews = False,
    cancel: Cancel | None = None,
) -> Clip:
    """Answer a request: canvas, conditioning, noise, sampling, decoding; in two stages where it asks for the second.

    ``noise`` is standard normal of the latent shape (B, C, T, h, w), instead of the seed's; of a job of two stages,
    by their names "base" and "super-resolution". ``output="latents"`` returns the latents in the clip's ``video``,
    of two stages "latents:base" or "latents:super-resolution". ``on_settled`` is called with the settled request, of
    which size and rate are the clip's, before anything is read: what it raises ends the work. ``preview`` adds events
    with small pictures of x0 (`kinema.previews`), which change no number of the clip. ``asked`` may be the stages of a
    recipe instead of a request. Other threads that ask the same system wait for their turn.

    Raises BadRequest for what the model cannot do, before its weights are read, and Cancelled once ``cancel`` is set
    (`kinema.cancel.Cancel`), with what there is of the clip where the token says so.
    """
    hear, previews = checking(on_event), Previews.asked(preview)
    with cancellable(cancel), system.runtime.running():
        works = draw_up(system, asked, hear, on_settled)
        noises, wanted = noises_of(works, noise), latents_wanted(works, output)
        made_by = recipe(works, noises)  # inputs are hashed before the work, as they are now
        first, last = works[0], works[-1]
        fps = cast(float, last.stage.request.fps)
        sound = carried(first.canvas.heard, last.stage.request.shape.frames / fps, hear)
        video = torch.empty(0)
        for work in works:
            work.system.begin_hash()  # beside the work; files that are gone are told now
        for number, work in enumerate(works):
            work = enlarged(work, video) if number else work  # noqa: PLW2901
            try:
                video = _made(work, noises, wanted, watched(hear, work, previews))
            except Cancelled as cancelled:
                raise Cancelled(str(cancelled), _partial(cancelled.clip, works, made_by)) from None
            if wanted == work.stage.name:
                break
            made_by["stages"][number]["weights"] = work.system.weights_hash
        on_event(Memory(_peak_bytes()))
        if wanted:
            return Clip(video, fps, made_by)
        return Clip(video, fps, made_by | {"frames_hash": frames_hash(video)}, sound)


def watched(on_event: OnEvent, work: StageRun, previews: Previews | None) -> OnEvent:
    """The listener of one stage, with previews of it where they are asked for."""
    stage = work.stage
    return Previewed(on_event, work.system, stage.name, stage.request.shape, previews) if previews else on_event


def _made(work: StageRun, noises: Mapping[str, Tensor], wanted: str, on_event: OnEvent) -> Tensor:
    """The frames of a stage; its latents, where those are wanted."""
    system, stage = work.system, work.stage
    with system.runtime.running(), torch.no_grad():
        on_event(Phase("load", system.name))
        place(system, stage.memory)
        draws, own = system.noise(stage.request), noises.get(stage.name)
        if wanted == stage.name:
            return latents(work, own, draws, on_event)
        return work.finished(pixels(work, own, draws, on_event))


def _partial(clip: Clip | None, works: Sequence[StageRun], made_by: Mapping[str, Any]) -> Clip | None:
    """What there is of a cancelled clip, with its sound, and a recipe that says where it was cancelled."""
    if clip is None:
        return None
    stages = [told | {"weights": work.system.weights_hash} for told, work in zip(made_by["stages"], works, strict=True)]
    heard = None if clip.recipe["partial"]["start"] else works[0].canvas.heard
    sound = carried(heard, clip.shape.frames / clip.fps, ignore)
    return replace(clip, recipe={**made_by, **clip.recipe, "stages": stages}, sound=sound)


def _peak_bytes() -> int:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return _resident_peak()


def _resident_peak() -> int:
    """The process's peak resident memory; 0 where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
