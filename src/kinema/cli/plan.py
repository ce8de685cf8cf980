"""``kinema plan``: what a request would do and cost, with the reason for every figure, before it runs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from kinema.cli import machine
from kinema.cli.options import Option, parse, with_defaults
from kinema.cli.verbs import CONFIG, MODEL, VERBS, model_options, open_model, request_from, request_options
from kinema.schema import Event, Note, Request, TaskName

if TYPE_CHECKING:
    from kinema.generate import Model
    from kinema.system import System

OWN = [
    Option("measure", bool, True, "run a few steps and time them (loads the weights)"),
    Option("json", bool, False, "as JSON"),
]
MEASURED_STEPS = (1, 3)
"""Two runs of so many steps tell the cost of a step from the cost of everything around it."""
SAFETY = 0.9
"""Share of the free memory that a plan may fill."""


@dataclass(frozen=True)
class Plan:
    """``None`` where nothing was measured. Bytes and seconds."""

    task: str
    model: str
    device: str
    size: str
    latent: str
    steps: int
    sampler: str
    guidance: float
    network_calls: int
    parameters: int
    weight_bytes: int
    free_bytes: int
    seconds: float | None
    seconds_a_step: float | None
    peak_bytes: int | None
    fits: bool
    reasons: tuple[str, ...]


def plan(words: Sequence[str]) -> int:
    """Exit code 0 when the request fits this machine, 1 when it does not, 2 when it is refused."""
    task, words = _task(words)
    options = [*request_options(task), *MODEL, *OWN, CONFIG]
    told = parse(options, words, f"kinema plan {task}", f"What this would do and cost: {VERBS[task].about}")
    own = with_defaults(OWN, told)
    request = request_from(task, told)
    made = draw_up(open_model(model_options(told)), request, measure=own["measure"])
    sys.stdout.write((json.dumps(asdict(made), indent=2, ensure_ascii=False) if own["json"] else describe(made)) + "\n")
    return 0 if made.fits else 1


def _task(words: Sequence[str]) -> tuple[TaskName, Sequence[str]]:
    """The verb, where the first word is one; a prompt alone means `generate`."""
    for task in VERBS:
        if words and words[0] == task:
            return task, words[1:]
    return "generate", words


def draw_up(model: Model, request: Request, *, measure: bool) -> Plan:
    """Settle the request, count the network, and time a few steps of it where its weights fit."""
    system = model.system
    notes: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Note) and event.message not in notes:
            notes.append(event.message)

    settled = system.settle(request, listen)
    count, _ = machine.parameters(system.family, system.config)
    weight_bytes = count * system.dtype.itemsize
    free = machine.free_memory(str(system.device))
    fits = weight_bytes < SAFETY * free
    notes.append(f"weights: {count:,} parameters × {system.dtype.itemsize} bytes")
    seconds = a_step = peak = None
    if measure and fits:
        seconds, a_step = _measure(model, settled)
        peak = machine.peak_memory(str(system.device)) or None
        notes.append(
            f"time: {a_step:.3g} s a step × {settled.steps} + {seconds - a_step * (settled.steps or 0):.3g} s around "
            f"the steps, from runs of {MEASURED_STEPS[0]} and {MEASURED_STEPS[1]} steps just now"
        )
        notes.append("memory: the peak of those runs; more steps need no more")
    elif not fits:
        notes.append(f"memory: the weights alone need more than {SAFETY:.0%} of what is free on {system.device}")
    else:
        notes.append("time and memory of the steps were not measured (--no-measure)")
    guided = settled.guidance not in (None, 1)
    return Plan(
        task=settled.task,
        model=system.name,
        device=str(system.device),
        size=_size(system, settled),
        latent="×".join(map(str, system.latent_shape(settled).bcthw)),
        steps=settled.steps or 0,
        sampler=settled.sampler or "",
        guidance=settled.guidance or 0.0,
        network_calls=(settled.steps or 0) * (2 if guided else 1),
        parameters=count,
        weight_bytes=weight_bytes,
        free_bytes=free,
        seconds=seconds,
        seconds_a_step=a_step,
        peak_bytes=peak,
        fits=fits,
        reasons=tuple(notes),
    )


def _measure(model: Model, request: Request) -> tuple[float, float]:
    """(seconds in all, seconds a step) of the whole request, from two short runs after a warm one."""
    few, more = MEASURED_STEPS
    request = request.with_(seed=0 if request.seed is None else request.seed)
    model.run(request.with_(steps=few))
    took = []
    for steps in (few, more):
        began = time.perf_counter()
        model.run(request.with_(steps=steps))
        took.append(time.perf_counter() - began)
    a_step = max((took[1] - took[0]) / (more - few), 1e-6)
    around = max(took[0] - a_step * few, 0.0)
    return around + a_step * (request.steps or 0), a_step


def _size(system: System, request: Request) -> str:
    shape = request.shape
    seconds = shape.frames / (request.fps or system.family.defaults(system.config).fps)
    clips = f"{shape.batch} clips of " if shape.batch > 1 else ""
    return f"{clips}{shape.frames} frames of {shape.width}×{shape.height} at {request.fps:g} fps ({seconds:.2g} s)"


def describe(made: Plan) -> str:
    """The plan as a person reads it: the answer first, then the figures, then the reasons."""
    gib = 2**30
    if not made.fits:
        head = f"does not fit: {made.weight_bytes / gib:.2f} GiB of weights, {made.free_bytes / gib:.2f} GiB free"
    elif made.seconds is None or made.peak_bytes is None:
        head = f"fits: {made.weight_bytes / gib:.2f} GiB of weights, {made.free_bytes / gib:.2f} GiB free"
    else:
        head = f"fits: about {made.seconds:.1f} s, {made.peak_bytes / gib:.2f} GiB at the peak"
    rows = [
        ("model", f"{made.model} on {made.device}, {made.parameters:,} parameters"),
        ("makes", made.size),
        ("latents", made.latent),
        (
            "sampling",
            f"{made.sampler}, {made.steps} steps, guidance {made.guidance:g}: {made.network_calls} network calls",
        ),
        *(("because", reason) for reason in made.reasons),
    ]
    return "\n".join([head, *(f"  {name:<10} {value}" for name, value in rows)])
