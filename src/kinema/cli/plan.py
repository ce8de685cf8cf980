"""``kinema plan``: forecast the size, time and memory of a request, with a reason for each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from kinema.bounds import as_json, printable
from kinema.cli import remote
from kinema.cli.options import with_defaults
from kinema.cli.progress import Lines
from kinema.cli.remote import SERVER
from kinema.cli.verbs import (
    CONFIG,
    MODEL,
    VERBS,
    additions,
    lora_weights,
    model_options,
    open_model,
    read_options,
    request_from,
    request_options,
)
from kinema.options import Option
from kinema.schema import TaskName

if TYPE_CHECKING:
    from kinema.forecast import Forecast

OWN = [
    Option("measure", bool, True, "do not load the model to time a few steps"),
    Option("json", bool, False, "print the forecast as JSON"),
]


def plan(argv: Sequence[str]) -> int:
    """Exit code 0 if the request can run: it fits in memory and no file is missing. 1 if not; BadRequest if invalid."""
    task, argv, named = _task(argv)
    options = [*request_options(task), *MODEL, SERVER, *OWN, CONFIG]
    about = f"Forecast size, time and memory, without writing anything, of: {VERBS[task].about}"
    if not named:
        others = ", ".join(verb for verb in VERBS if verb != task)
        about = (
            "Forecast the size, time and memory of a request, without writing anything. These are the options of "
            f"`kinema plan {task}`, where {task} may be left out; the other verbs are {others} "
            "(see kinema plan animate --help)."
        )
    given = read_options(task, options, argv, "kinema plan", about)
    settings = with_defaults(OWN, given)
    request = request_from(task, given)
    if given.get(SERVER.name) is None:
        from kinema.forecast import forecast

        result = forecast(
            open_model(model_options(given), on_event=Lines(sys.stderr)), request, measure=settings["measure"]
        )
    else:
        request = remote.with_loras(request, lora_weights(given.get("lora", ())))
        result = remote.plan(given, options, request, additions(given.get("add", ())))
    sys.stdout.write((as_json(asdict(result), indent=2) if settings["json"] else describe(result)) + "\n")
    return 0 if result.fits and not result.missing else 1


def _task(argv: Sequence[str]) -> tuple[TaskName, Sequence[str], bool]:
    """(verb, remaining arguments, whether the verb was named); without a verb it is `generate`."""
    for task in VERBS:
        if argv and argv[0] == task:
            return task, argv[1:], True
    return "generate", argv, False


def describe(result: Forecast) -> str:
    """The forecast as text: the verdict, the figures, the reasons."""
    gib = 2**30
    free = (
        f"{result.budget_bytes / gib:.2f} GiB may be used"
        if result.budget_bytes
        else f"{result.free_bytes / gib:.2f} GiB free"
    )
    weights = f"{result.weight_bytes / gib:.2f} GiB of weights"
    if not result.fits:
        head = f"does not fit: {weights}, {result.free_bytes / gib:.2f} GiB free"
    elif result.missing:
        head = f"cannot run yet, since a file is missing; {weights}, {free}"
    elif result.seconds is None or result.peak_bytes is None:
        needed = "" if result.needed_bytes is None else f", about {result.needed_bytes / gib:.2f} GiB peak memory"
        about = "" if result.seconds is None else f"about {result.seconds:.1f} s, "
        head = f"fits: {about}{weights}{needed}, {free}"
    else:
        head = f"fits: about {result.seconds:.1f} s, {result.peak_bytes / gib:.2f} GiB peak memory"
    calls = "" if result.network_calls is None else f": {result.network_calls} network calls"
    rows = [
        ("model", f"{result.model} on {result.device} in {result.dtype}, {result.parameters:,} parameters"),
        ("clip", result.size),
        ("latents", result.latent),
        ("sampling", result.sampling + calls),
        ("options", _memory_options(result)),
        *(("missing", fault) for fault in result.missing),
        *(("reason", reason) for reason in result.reasons),
    ]
    return "\n".join([head, *(f"  {name:<10} {printable(value)}" for name, value in rows)])


def _memory_options(result: Forecast) -> str:
    """The memory options that reproduce this plan."""
    options = [f"--offload {result.offload}"]
    if result.chunk_tokens:
        options.append(f"--chunk-tokens {result.chunk_tokens}")
    if result.compiled:
        options.append("--compile")
    return " ".join(options)
