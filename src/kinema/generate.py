"""From a request to a clip: start reading here.

    request ─ plan_job ───────── the job: settled requests, canvases, memory plans; invalid requests are refused
       │
    for each stage ───────────── an image if requested, base, super-resolution if requested
       │   runtime.running ───── weights placed; one job at a time
       │   rollout.pixels ────── encode prompts once, then condition, sample and decode block by block
       │
    clip ─────────────────────── given pixels bit-identical, recipe, sound

This is the only module where families and tasks meet. Pixels are B×3×T×H×W in [-1, 1], latents B×C×T×h×w.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from kinema.cancel import Cancel, cancellable, checking
from kinema.effort import over_stages, shares
from kinema.events import Memory, OnEvent, Phase, ignore
from kinema.job import (
    JobSource,
    Noise,
    OnSettled,
    StageRun,
    accept,
    base_of,
    latents_stage,
    noise_by_stage,
    plan_job,
    with_image,
)
from kinema.media.sound import extract_audio
from kinema.memory.free import peak_bytes
from kinema.memory.placing import place
from kinema.previews import Previewed, Previews
from kinema.provenance import frames_hash, recipe
from kinema.rollout import latents, pixels, with_small_clip
from kinema.schema import Cancelled, Clip
from kinema.system import System


def generate(
    system: System,
    asked: JobSource,
    *,
    noise: Noise = None,
    on_event: OnEvent = ignore,
    on_settled: OnSettled = accept,
    output: str = "clip",
    preview: bool | Previews = False,
    cancel: Cancel | None = None,
) -> Clip:
    """Generate a clip from a request or from the stages of a recipe.

    ``noise`` is standard normal noise of the latent shape (B, C, T, h, w) that replaces the seed's; with several
    stages, a mapping from "image", "base" and "super-resolution". ``output="latents"`` returns latents in the clip's
    ``video``; with several stages "latents:base" and so on. ``on_settled`` is called with the settled request, which
    has the clip's size and rate, before any file is read; an exception from it ends the run. ``preview`` adds `Preview`
    events (`kinema.previews`), which do not change the clip. Runs of the same system from other threads wait.

    Raises BadRequest for unsupported requests, before weights are loaded, and Cancelled once ``cancel`` is set
    (`kinema.cancel.Cancel`), with the partial clip if the token asks for it.
    """
    hear, previews = checking(on_event), Previews.asked(preview)
    with cancellable(cancel), system.runtime.running():
        works = plan_job(system, asked, hear, on_settled)
        noises, latents_of = noise_by_stage(works, noise), latents_stage(works, output)
        record = recipe(works, noises)  # hashes the inputs before sampling, while they are unchanged
        base, last = base_of(works), works[-1]
        fps = cast(float, last.stage.request.fps)
        sound = extract_audio(base.canvas.heard, last.stage.request.shape.frames / fps, hear)
        videos: dict[str, Tensor] = {}
        for work in works:
            work.system.begin_hash()  # in the background; missing files are reported now
        effort, done = shares(works), 0.0
        for number, work in enumerate(works):
            report = over_stages(with_previews(hear, work, previews), done, effort[number])
            done += effort[number]
            try:
                video = _run_stage(_after(work, videos, hear), noises, latents_of, report)
            except Cancelled as cancelled:
                small = _small(videos, works, record) if cancelled.keep_partial and "base" in videos else None
                raise Cancelled(str(cancelled), _partial(cancelled.clip, works, record), small=small) from None
            videos[work.stage.name] = video
            if latents_of == work.stage.name:
                break
            record["stages"][number]["weights"] = work.system.weights_hash
        on_event(Memory(peak_bytes(str(system.device))))
        if latents_of:
            return Clip(video, fps, record)
        return Clip(video, fps, record | {"frames_hash": frames_hash(video)}, sound)


def _after(work: StageRun, videos: Mapping[str, Tensor], on_event: OnEvent) -> StageRun:
    """Return a stage with what earlier stages generated, by their names."""
    if "image" in videos:
        work = with_image(work, videos["image"], ignore if "base" in videos else on_event)
    return with_small_clip(work, videos["base"]) if "base" in videos else work


def with_previews(on_event: OnEvent, work: StageRun, previews: Previews | None) -> OnEvent:
    """Return the listener of one stage, with previews if requested."""
    stage = work.stage
    return Previewed(on_event, work.system, stage.name, stage.request.shape, previews) if previews else on_event


def _run_stage(work: StageRun, noises: Mapping[str, Tensor], latents_of: str, on_event: OnEvent) -> Tensor:
    """Return the frames of a stage, or its latents if ``latents_of`` names it."""
    system, stage = work.system, work.stage
    with system.runtime.running(), torch.no_grad():
        on_event(Phase("load", system.name))
        place(system, stage.memory)
        draws, own = system.noise(stage.request), noises.get(stage.name)
        if latents_of == stage.name:
            return latents(work, own, draws, on_event)
        return work.finished(pixels(work, own, draws, on_event))


def _partial(clip: Clip | None, works: Sequence[StageRun], record: Mapping[str, Any]) -> Clip | None:
    """Return a cancelled clip with its sound and a recipe that states where it was cancelled."""
    if clip is None:
        return None
    pairs = zip(record["stages"], works, strict=True)
    stages = [entry | {"weights": work.system.weights_hash} for entry, work in pairs]
    heard = None if clip.recipe["partial"]["start"] else base_of(works).canvas.heard
    sound = extract_audio(heard, clip.shape.frames / clip.fps, ignore)
    return replace(clip, recipe={**record, **clip.recipe, "stages": stages}, sound=sound)


def _small(videos: Mapping[str, Tensor], works: Sequence[StageRun], record: Mapping[str, Any]) -> Clip:
    """Return the finished clip of the base stage, with the recipe that generates it alone."""
    base, video = base_of(works), videos["base"]
    fps = cast(float, base.stage.request.fps)
    stages = record["stages"][: works.index(base) + 1]
    sound = extract_audio(base.canvas.heard, video.shape[2] / fps, ignore)
    return Clip(video, fps, {**record, "stages": stages, "frames_hash": frames_hash(video)}, sound)
