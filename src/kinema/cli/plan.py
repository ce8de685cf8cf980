"""``kinema plan``: what a request would do and cost, with the reason for every figure, before it runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from operator import mul
from typing import TYPE_CHECKING, Any

from kinema.bounds import as_json, printable
from kinema.cli import machine
from kinema.cli.options import Option, parse, with_defaults
from kinema.cli.verbs import CONFIG, MODEL, VERBS, model_options, open_model, request_from, request_options
from kinema.events import Event, Note, Phase, Step
from kinema.schema import Request, TaskName

if TYPE_CHECKING:
    from kinema.api import Model
    from kinema.job import StageRun

OWN = [
    Option("measure", bool, True, "run a few steps and time them (loads the weights)"),
    Option("json", bool, False, "as JSON"),
]
MEASURED_STEPS = (1, 3)
"""Two runs of so many steps tell the cost of a step from the cost of everything around it."""


@dataclass(frozen=True)
class MemoryPlan:
    """``None`` where nothing was measured. Bytes and seconds."""

    task: str
    model: str
    device: str
    dtype: str
    """What the first stage's network computes in."""
    size: str
    latent: str
    steps: int
    sampling: str
    """Of each stage, for people; ``steps``, ``sampler`` and ``guidance`` are the first one's."""
    sampler: str
    guidance: float
    parameters: int
    weight_bytes: int
    free_bytes: int
    budget_bytes: int
    """What may be used: most of what is free, or what --memory says."""
    needed_bytes: int | None
    """At the peak, told beforehand; None where there is plenty, or nothing fits."""
    offload: str
    chunk_tokens: int | None
    compiled: bool
    """Of all stages."""
    network_calls: int | None
    seconds: float | None
    seconds_a_step: float | None
    peak_bytes: int | None
    fits: bool
    stages: tuple[dict[str, Any], ...]
    """What the recipe will hold of each: frames, blocks, memory."""
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    """Seconds of one step of each stage and of everything around the steps; calls of the networks in all."""

    a_step: tuple[float, ...]
    around: float
    calls: int


def plan(words: Sequence[str]) -> int:
    """Exit code 0 when the request fits this machine, 1 when it does not, 2 when it is refused."""
    task, words, named = _task(words)
    options = [*request_options(task), *MODEL, *OWN, CONFIG]
    about = f"What this would do and cost: {VERBS[task].about}"
    if not named:
        others = ", ".join(verb for verb in VERBS if verb != task)
        about = (
            f"What a request would do and cost, before it runs. VERB is {task} where it is left out, as here, or one "
            f"of {others}, which have options of their own: kinema plan animate --help."
        )
    told = parse(options, words, f"kinema plan {task if named else '[VERB]'}", about)
    own = with_defaults(OWN, told)
    request = request_from(task, told)
    made = draw_up(open_model(model_options(told)), request, measure=own["measure"])
    sys.stdout.write((as_json(asdict(made), indent=2) if own["json"] else describe(made)) + "\n")
    return 0 if made.fits else 1


def _task(words: Sequence[str]) -> tuple[TaskName, Sequence[str], bool]:
    """The verb and the words after it, and whether it was named; a prompt alone means `generate`."""
    for task in VERBS:
        if words and words[0] == task:
            return task, words[1:], True
    return "generate", words, False


def draw_up(model: Model, request: Request, *, measure: bool) -> MemoryPlan:
    """Draw the job up, find what it needs and how it fits, and time a few steps of it where it does."""
    from kinema.job import bytes_of_other_stages, drawn_up, precision_notes, with_memory_plan
    from kinema.memory.plan import MemoryPlan as Fitting
    from kinema.memory.plan import TooLarge
    from kinema.stages import NotesOnce

    system = model.system
    notes: list[str] = []

    works = drawn_up(
        system, request, NotesOnce(lambda event: notes.append(event.message) if isinstance(event, Note) else None)
    )
    count = sum(machine.parameters(work.system.family, work.system.config)[0] for work in works)
    device = str(system.device)
    how, refusal = Fitting(), ""
    stages = []
    try:
        for number, work in enumerate(works):
            how = with_memory_plan(work, bytes_of_other_stages(works, number))
            stages.append(replace(work.stage, memory=how).to_dict())
    except TooLarge as error:
        refusal = str(error)
    steps = [(work.stage.request.steps or 0) - work.canvas.skipped for work in works]
    cost = _measure(model, request, works, steps) if measure and not refusal else None
    notes += [*precision_notes(system), *how.reasons]
    figures: dict[str, Any] = {
        "seconds": cost.around + sum(map(mul, cost.a_step, steps)) if cost else None,
        "seconds_a_step": sum(cost.a_step) if cost else None,
        "network_calls": cost.calls if cost else None,
        "peak_bytes": machine.peak_memory(device) or None if cost else None,
    }
    return MemoryPlan(
        **told_of(works, steps),
        **figures,
        device=device,
        dtype=str(system.dtype).removeprefix("torch."),
        parameters=count,
        weight_bytes=count * system.dtype.itemsize,
        free_bytes=machine.free_memory(device),
        budget_bytes=how.budget,
        needed_bytes=how.need,
        offload=how.offload,
        chunk_tokens=how.tokens,
        compiled=system.compiled,
        fits=not refusal,
        stages=tuple(stages),
        reasons=(*notes, *_reasons(count, system.dtype.itemsize, steps, cost, refusal)),
    )


def told_of(works: Sequence[StageRun], steps: Sequence[int]) -> dict[str, Any]:
    """What a plan says of the job itself: the finished clip, and how each stage is sampled."""
    requests = [work.stage.request for work in works]
    first, last = requests[0], requests[-1]
    b, _, t, h, w = last.shape.bcthw
    sampled = [
        f"{request.sampler}, {count} steps, guidance {request.guidance or 0.0:g}"
        for request, count in zip(requests, steps, strict=True)
    ]
    return {
        "task": last.task,
        "model": " then ".join(work.system.name for work in works),
        "size": f"{b} × {t} frames of {w}×{h} at {last.fps:g} fps",
        "latent": " then ".join("×".join(map(str, work.latent)) for work in works),
        "steps": steps[0],
        "sampling": ", then ".join(sampled),
        "sampler": first.sampler or "",
        "guidance": first.guidance or 0.0,
    }


def _reasons(count: int, width: int, steps: Sequence[int], cost: Cost | None, refusal: str) -> list[str]:
    reasons = [f"weights: {count:,} parameters × {width} bytes"]
    if cost:
        few, more = MEASURED_STEPS
        sampling = " + ".join(f"{count} × {each:.3g} s" for count, each in zip(steps, cost.a_step, strict=True))
        return [
            *reasons,
            f"time: {sampling} + {cost.around:.3g} s, timed just now over {few} and {more} steps",
            "memory: the peak of those runs, libraries included; more steps need no more",
        ]
    if refusal:
        return [*reasons, f"memory: {refusal}", "nothing was loaded"]
    return [*reasons, "time and calls of the steps: not measured, as --no-measure asks"]


def _measure(model: Model, request: Request, works: Sequence[StageRun], steps: Sequence[int]) -> Cost:
    """Time two short runs after a warm one; what they differ by is the cost of a step, of both stages where there are
    two.
    """
    few, more = MEASURED_STEPS
    if request.task == "edit":
        request = request.with_(strength=1.0)  # an edit skips its first steps; here every step counts
    model.run(request.with_(steps=few))
    from kinema.memory.offload import networks

    counters = []
    for system in (work.system for work in works):
        last = system.family.blocks(system.model)[-1]
        counters.append(machine.count_calls(next(n for n in networks(system.model).values() if last in n.modules())))
    seconds, called = [], []
    try:
        for some in MEASURED_STEPS:
            clock, before, began = Clock(), [calls[0] for calls, _ in counters], time.perf_counter()
            model.run(request.with_(steps=some), on_event=clock)
            seconds.append(time.perf_counter() - began)
            called.append([calls[0] - was for (calls, _), was in zip(counters, before, strict=True)])
    finally:
        for _, counting in counters:
            counting.remove()
    both = max((seconds[1] - seconds[0]) / (more - few), 1e-6)
    more_calls = [(many - one) / (more - few) for one, many in zip(*called, strict=True)]
    counted = zip(called[0], more_calls, steps, strict=True)
    return Cost(
        a_step=tuple(both * share for share in clock.shares()),
        around=max(seconds[0] - both * few, 0.0),
        calls=round(sum(one + each * (count - few) for one, each, count in counted)),
    )


class Clock:
    """Hears when the steps of each stage are done."""

    def __init__(self) -> None:
        self.stages: list[list[float]] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Phase) and event.name == "load":
            self.stages.append([])
        elif isinstance(event, Step):
            self.stages[-1].append(time.perf_counter())

    def shares(self) -> list[float]:
        """The share of a step of all stages that each of them takes."""
        spent = [stage[-1] - stage[0] if stage else 0.0 for stage in self.stages]
        return [each / sum(spent) if sum(spent) else 1 / len(spent) for each in spent]


def describe(made: MemoryPlan) -> str:
    """The plan as a person reads it: the answer first, then the figures, then the reasons."""
    gib = 2**30
    room = (
        f"{made.budget_bytes / gib:.2f} GiB may be used"
        if made.budget_bytes
        else f"{made.free_bytes / gib:.2f} GiB free"
    )
    if not made.fits:
        head = f"does not fit: {made.weight_bytes / gib:.2f} GiB of weights, {made.free_bytes / gib:.2f} GiB free"
    elif made.seconds is None or made.peak_bytes is None:
        needed = "" if made.needed_bytes is None else f", about {made.needed_bytes / gib:.2f} GiB at the peak"
        head = f"fits: {made.weight_bytes / gib:.2f} GiB of weights{needed}, {room}"
    else:
        head = f"fits: about {made.seconds:.1f} s, {made.peak_bytes / gib:.2f} GiB at the peak"
    rows = [
        ("model", f"{made.model} on {made.device} in {made.dtype}, {made.parameters:,} parameters"),
        ("makes", made.size),
        ("latents", made.latent),
        (
            "sampling",
            made.sampling + ("" if made.network_calls is None else f": {made.network_calls} network calls"),
        ),
        ("memory", _settings(made)),
        *(("because", reason) for reason in made.reasons),
    ]
    return "\n".join([head, *(f"  {name:<10} {printable(value)}" for name, value in rows)])


def _settings(made: MemoryPlan) -> str:
    """The options that this plan comes to, to be given again."""
    told = [f"--offload {made.offload}"]
    if made.chunk_tokens:
        told.append(f"--chunk-tokens {made.chunk_tokens}")
    if made.compiled:
        told.append("--compile")
    return " ".join(told)
