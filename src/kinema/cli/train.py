"""``kinema train`` and ``kinema evaluate``: options from the dataclasses of those layers, events to the screen."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from kinema import registry
from kinema.cli.options import Option, from_dataclass, parse
from kinema.cli.progress import JsonLines, display
from kinema.cli.verbs import CONFIG, REPORTING
from kinema.schema import BadRequest

INTERRUPTED = 130


SHIPPED = [
    Option("shipped", str | None, None, "train shipped weights of this name from scratch, in runs under --out"),
    Option("dry_run", bool, False, "list the runs of --shipped, and train nothing"),
]


def train(words: Sequence[str]) -> int:
    """Train until the recipe's last step; a signal finishes the running step and saves."""
    about = "Train a model, or resume the run that stands in --out."
    target = "kinema.training.options:TrainOptions"
    told, show_options = _read(target, ["model"], words, "kinema train", about, SHIPPED)
    name, dry = told.pop("shipped", None), told.pop("dry_run", False)
    if dry and name is None:
        raise BadRequest("--dry-run lists the runs of --shipped NAME; name what ships")
    if dry:
        sys.stdout.write("".join(f"{line}\n" for line in registry.resolve("kinema.training.shipped:lines")(name, told)))
        return 0
    with display(**show_options) as show:
        if name is not None:
            result = registry.resolve("kinema.training.shipped:train_shipped")(name, told, on_event=show)
        else:
            options = registry.resolve(target)(**told)
            result = registry.resolve("kinema.training.run:train")(options, on_event=show)
        if isinstance(show, JsonLines):
            show.write("saved", {"paths": [str(result.weights)], "step": result.step, "loss": result.loss})
    if not isinstance(show, JsonLines):
        sys.stdout.write(f"{result.weights}\n")
    if result.interrupted:
        sys.stderr.write(f"kinema: interrupted at step {result.step} and saved; the same command goes on from there\n")
        return INTERRUPTED
    return 0


def evaluate(words: Sequence[str]) -> int:
    """Measure a model and print its figures; an interruption keeps what was measured by then."""
    about = "Measure a model on held-out prompts, or write the report on temporal consistency."
    told, show_options = _read("kinema.evaluation.options:EvaluateOptions", ["model"], words, "kinema evaluate", about)
    options = registry.resolve("kinema.evaluation.options:EvaluateOptions")(**told)
    with display(**show_options) as show:
        result = registry.resolve("kinema.evaluation.run:evaluate")(options, on_event=show)
        if isinstance(show, JsonLines):
            show.write("result", json.loads(result.to_json()))
    if not isinstance(show, JsonLines):
        sys.stdout.write(f"{result.table()}\n")
    return INTERRUPTED if result.partial else 0


def _read(
    target: str,
    positional: list[str],
    words: Sequence[str],
    prog: str,
    about: str,
    more: Sequence[Option] = (),
) -> tuple[dict[str, Any], dict[str, bool]]:
    """(fields that were told, how to show progress) for the options dataclass that ``target`` names."""
    options: list[Option] = from_dataclass(registry.resolve(target), positional=positional)
    told = parse([*options, *more, *REPORTING, CONFIG], words, prog, about)
    show = {o.name: told.pop(o.name, False) for o in REPORTING}
    told.pop("config", None)
    return told, show
