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

INTERRUPTED = 130


def train(words: Sequence[str]) -> int:
    """Train until the recipe's last step; a signal finishes the running step and saves."""
    about = "Train a model, or resume the run that stands in --out."
    told, show_options = _read("kinema.training.options:TrainOptions", ["model"], words, "kinema train", about)
    options = registry.resolve("kinema.training.options:TrainOptions")(**told)
    with display(**show_options) as show:
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
    target: str, positional: list[str], words: Sequence[str], prog: str, about: str
) -> tuple[dict[str, Any], dict[str, bool]]:
    """(fields that were told, how to show progress) for the options dataclass that ``target`` names."""
    options: list[Option] = from_dataclass(registry.resolve(target), positional=positional)
    told = parse([*options, *REPORTING, CONFIG], words, prog, about)
    show = {o.name: told.pop(o.name, False) for o in REPORTING}
    told.pop("config", None)
    return told, show
