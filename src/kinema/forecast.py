"""Forecast the size, time and memory of a request, with a reason for each choice.

``kinema plan`` prints it; the service plans a request with it before the request is queued.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import mul
from typing import Any

from torch import nn

from kinema.api import Model
from kinema.events import Event, Note, Phase, Step
from kinema.job import (
    OnSettled,
    StageRun,
    accept,
    build_job,
    bytes_of_other_stages,
    choose_memory_plan,
    precision_notes,
)
from kinema.memory.free import free_bytes, peak_bytes
from kinema.memory.offload import networks
from kinema.memory.plan import MemoryPlan, TooLarge
from kinema.schema import BadRequest, MissingFiles, Request
from kinema.stages import NotesOnce
from kinema.system import System
from kinema.system.counting import parameters

MEASURED_STEPS = (1, 3)
"""Steps of the two timed runs; their difference separates the cost of a step from the fixed cost."""


@dataclass(frozen=True)
class Forecast:
    """What a request would do and cost. Bytes and seconds; ``None`` where nothing was measured."""

    task: str
    model: str
    device: str
    dtype: str
    """Compute precision of the first stage's network."""
    size: str
    latent: str
    steps: int
    sampling: str
    """Sampling of every stage, as text; ``steps``, ``sampler`` and ``guidance`` are those of the first stage."""
    sampler: str
    guidance: float
    parameters: int
    weight_bytes: int
    free_bytes: int
    budget_bytes: int
    """Memory that may be used: most of what is free, or --memory."""
    needed_bytes: int | None
    """Estimated peak; None if memory is plentiful or nothing fits."""
    offload: str
    chunk_tokens: int | None
    compiled: bool
    network_calls: int | None
    seconds: float | None
    seconds_a_step: float | None
    """Over all stages."""
    peak_bytes: int | None
    fits: bool
    missing: tuple[str, ...]
    """Files besides the weights that the models need and this machine lacks, such as text encoders."""
    stages: tuple[dict[str, Any], ...]
    """What the recipe will record of each stage: frames, blocks of frames, memory plan."""
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    """Seconds of one step of each stage, fixed seconds besides the steps, and network calls in total."""

    a_step: tuple[float, ...]
    around: float
    calls: int


@dataclass(frozen=True, eq=False)
class PlannedJob:
    """A planned job without its memory plans, and the notes of planning it."""

    runs: Sequence[StageRun]
    notes: Sequence[str]


def forecast(model: Model, request: Request, *, measure: bool) -> Forecast:
    """Plan the job and its memory, and time a few steps if it fits."""
    return forecast_of(model, request, planned(model.system, request), measure=measure)


def planned(system: System, request: Request, on_settled: OnSettled = accept) -> PlannedJob:
    """Plan the job of a request; see `kinema.job.build_job`."""
    notes: list[str] = []
    listen = NotesOnce(lambda event: notes.append(event.message) if isinstance(event, Note) else None)
    return PlannedJob(build_job(system, request, listen, on_settled), notes)


def memory_plans(job: PlannedJob) -> list[MemoryPlan]:
    """Return the memory plan of each stage. Raises TooLarge if one fits in no way."""
    return [choose_memory_plan(run, bytes_of_other_stages(job.runs, number)) for number, run in enumerate(job.runs)]


def forecast_of(model: Model, request: Request, job: PlannedJob, *, measure: bool) -> Forecast:
    """Return the forecast of a planned request."""
    system, runs = model.system, job.runs
    count = sum(parameters(run.system.family, run.system.config)[0] for run in runs)
    device = str(system.device)
    memory, refusal = MemoryPlan(), ""
    stages = []
    try:
        for run, memory in zip(runs, memory_plans(job), strict=True):
            stages.append(replace(run.stage, memory=memory).to_dict())
    except TooLarge as error:
        refusal = str(error)
    missing = tuple(dict.fromkeys(fault for run in runs for fault in _missing(run.system)))
    steps = [(run.stage.request.steps or 0) - run.canvas.skipped for run in runs]
    cost = _measure(model, request, runs, steps) if measure and not refusal and not missing else None
    notes = [*job.notes, *precision_notes(system), *memory.reasons]
    figures: dict[str, Any] = {
        "seconds": cost.around + sum(map(mul, cost.a_step, steps)) if cost else None,
        "seconds_a_step": sum(cost.a_step) if cost else None,
        "network_calls": cost.calls if cost else None,
        "peak_bytes": peak_bytes(device) or None if cost else None,
    }
    return Forecast(
        **job_fields(runs, steps),
        **figures,
        device=device,
        dtype=str(system.dtype).removeprefix("torch."),
        parameters=count,
        weight_bytes=count * system.dtype.itemsize,
        free_bytes=free_bytes(device),
        budget_bytes=memory.budget,
        needed_bytes=memory.need,
        offload=memory.offload,
        chunk_tokens=memory.tokens,
        compiled=system.compiled,
        fits=not refusal,
        missing=missing,
        stages=tuple(stages),
        reasons=(*notes, *_reasons(count, system.dtype.itemsize, steps, cost, _unmeasured(refusal, missing))),
    )


def _missing(system: System) -> tuple[str, ...]:
    """What a model needs besides its weights and this machine lacks, one sentence each."""
    try:
        system.family.checkpoints.check_ready(system)
    except MissingFiles as error:
        return error.args
    except BadRequest as error:
        return (str(error),)
    return ()


def _unmeasured(refusal: str, missing: Sequence[str]) -> str:
    """Why no time can be measured, as a reason; "" if it can."""
    if refusal:
        return f"memory: {refusal}"
    return "time: not measured, since files are missing" if missing else ""


def job_fields(runs: Sequence[StageRun], steps: Sequence[int]) -> dict[str, Any]:
    """The fields of a `Forecast` that describe the job: the finished clip and the sampling of each stage."""
    requests = [run.stage.request for run in runs]
    base = next(number for number, run in enumerate(runs) if run.stage.name != "image")
    first, last = requests[base], requests[-1]
    b, _, t, h, w = last.shape.bcthw
    sampling = [
        f"{request.sampler}, {count} steps, guidance {request.guidance or 0.0:g}"
        for request, count in zip(requests, steps, strict=True)
    ]
    return {
        "task": last.task,
        "model": " then ".join(run.system.name for run in runs),
        "size": f"{b} × {t} frames of {w}×{h} at {last.fps:g} fps",
        "latent": " then ".join("×".join(map(str, run.latent)) for run in runs),
        "steps": steps[base],
        "sampling": ", then ".join(sampling),
        "sampler": first.sampler or "",
        "guidance": first.guidance or 0.0,
    }


def _reasons(count: int, width: int, steps: Sequence[int], cost: Cost | None, unmeasured: str) -> list[str]:
    reasons = [f"weights: {count:,} parameters × {width} bytes"]
    if cost:
        few, more = MEASURED_STEPS
        pairs = zip(steps, cost.a_step, strict=True)
        sampling = " + ".join(f"{count} × {each:.3g} s" for count, each in pairs if each)
        return [
            *reasons,
            f"time: {sampling} + {cost.around:.3g} s, measured just now over {few} and {more} steps",
            "memory: the peak of those runs, including libraries; more steps need no more",
        ]
    if unmeasured:
        return [*reasons, unmeasured, "nothing was loaded"]
    return [*reasons, "time: not measured (--no-measure)"]


def _measure(model: Model, request: Request, runs: Sequence[StageRun], steps: Sequence[int]) -> Cost:
    """Time two short runs after a warm-up; their difference is the cost of a step, summed over the stages."""
    few, more = MEASURED_STEPS
    if request.task == "edit":
        request = request.with_(strength=1.0)  # an edit skips its first steps; measure all of them
    model.run(request.with_(steps=few))
    counters = []
    for system in (run.system for run in runs):
        last = system.family.blocks(system.model)[-1]
        counters.append(_count_calls(next(n for n in networks(system.model).values() if last in n.modules())))
    seconds, calls = [], []
    try:
        for number in MEASURED_STEPS:
            clock, before, began = StepClock(), [counter[0] for counter, _ in counters], time.perf_counter()
            model.run(request.with_(steps=number), on_event=clock)
            seconds.append(time.perf_counter() - began)
            calls.append([counter[0] - start for (counter, _), start in zip(counters, before, strict=True)])
    finally:
        for _, handle in counters:
            handle.remove()
    fixed = [number for number, run in enumerate(runs) if run.stage.name == "image"]  # its steps are its own
    a_step = max((seconds[1] - seconds[0]) / (more - few), 1e-6)
    calls_a_step = [(long - short) / (more - few) for short, long in zip(*calls, strict=True)]
    counts = zip(calls[0], calls_a_step, steps, strict=True)
    return Cost(
        a_step=tuple(a_step * share for share in clock.shares(fixed)),
        around=max(seconds[0] - a_step * few, 0.0),
        calls=round(sum(short + each * (count - few) for short, each, count in counts)),
    )


class StepClock:
    """Event listener that records when each step of each stage ends."""

    def __init__(self) -> None:
        self.stages: list[list[float]] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Phase) and event.name == "load":
            self.stages.append([])
        elif isinstance(event, Step):
            self.stages[-1].append(time.perf_counter())

    def shares(self, fixed: Sequence[int] = ()) -> list[float]:
        """Each stage's share of the time of one step of all stages, without those at ``fixed``."""
        spent = [stage[-1] - stage[0] if stage else 0.0 for stage in self.stages]
        if not sum(each for number, each in enumerate(spent) if number not in fixed):
            spent = [1.0] * len(spent)
        spent = [0.0 if number in fixed else each for number, each in enumerate(spent)]
        return [each / sum(spent) for each in spent]


def _count_calls(module: nn.Module) -> tuple[list[int], Any]:
    """Return a counter of the module's forward calls, and the handle whose ``remove()`` stops counting."""
    calls = [0]

    def count(*_args: Any) -> None:
        calls[0] += 1

    return calls, module.register_forward_hook(count)
