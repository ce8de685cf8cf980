"""``kinema train`` and ``kinema evaluate``: options from the dataclasses of those layers, events to the display."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from kinema import registry
from kinema.cli.options import parse
from kinema.cli.progress import JsonLines, display
from kinema.cli.verbs import CONFIG, REPORTING
from kinema.events import Note
from kinema.options import Option, from_dataclass
from kinema.schema import BadRequest

INTERRUPTED = 130
TRAIN_ABOUT = "Train or fine-tune a model. The same command resumes the run in --out."
TRAIN_EXAMPLE = "kinema train vdm/pocket --data my-clips --out runs/mine"
TRAIN_GROUPS = {
    "main options": (
        *("data", "out", "steps", "batch", "buckets", "learning_rate", "lora", "stage", "only", "add"),
        *("frames", "width", "height", "seed"),
    ),
    "clips of a folder": ("frameskip", "crop", "flip", "follow_links"),
    "clips of playroom": ("grammar", "style", "camera", "split"),
    "checkpoints and samples": ("save_every", "sample_every", "validate_every", "keep"),
    "device and memory": (
        *("device", "precision", "threads", "accumulate", "checkpoint_activations", "compile", "max_bad_steps"),
    ),
    "the weights that ship with Kinema": ("shipped", "dry_run"),
    "model files, progress and configuration": ("variant", "quiet", "json_events", "config"),
}
EVALUATE_ABOUT = "Measure a model on prompts outside training and tuning, or write the report on temporal consistency."
EVALUATE_EXAMPLE = "kinema evaluate runs/mine/model.safetensors --prompts 32"
EVALUATE_GROUPS = {
    "main options": ("prompts", "animate", "output", "overwrite", "seed"),
    "prompts": ("grammar", "split", "prompts_file"),
    "sampling": ("steps", "sampler", "guidance", "batch"),
    "reports instead of a measurement": ("report", "curve", "evidence"),
    "model and device": ("preset", "device", "threads"),
    "progress and configuration": ("quiet", "json_events", "config"),
}
SHIPPED = [
    Option(
        "shipped",
        str | None,
        None,
        "train the shipped weights of this name from scratch, in runs under --out",
        metavar="NAME",
    ),
    Option("dry_run", bool, False, "list the runs of --shipped without training"),
]


def train(argv: Sequence[str]) -> int:
    """Train to the last step. A signal finishes the current step, saves, and exits with 130."""
    target = "kinema.training.options:TrainOptions"
    help_page = ("kinema train", TRAIN_ABOUT, TRAIN_EXAMPLE, TRAIN_GROUPS)
    given, show_options = _read(target, argv, *help_page, SHIPPED)
    name, dry_run = given.pop("shipped", None), given.pop("dry_run", False)
    if name is None and (name := registry.resolve("kinema.training.shipped:of_preset")(given)) is not None:
        del given["model"]
    if dry_run and name is None:
        raise BadRequest("--dry-run needs --shipped NAME: it lists the runs that train shipped weights")
    if dry_run:
        return _list_runs(registry.resolve("kinema.training.shipped:lines")(name, given), show_options)
    with display(**show_options) as show:
        if name is not None:
            result = registry.resolve("kinema.training.shipped:train_shipped")(name, given, on_event=show)
        else:
            options = registry.resolve(target)(**given)
            result = registry.resolve("kinema.training.run:train")(options, on_event=show)
        if isinstance(show, JsonLines):
            show.write("saved", {"paths": [str(result.weights)], "step": result.step, "loss": result.loss})
    if not isinstance(show, JsonLines):
        sys.stdout.write(f"{result.weights}\n")
    if result.interrupted:
        sys.stderr.write(f"kinema: interrupted and saved at step {result.step}; run the same command to resume\n")
        return INTERRUPTED
    return 0


def _list_runs(lines: Sequence[str], show_options: Mapping[str, bool]) -> int:
    """Print the commands of the runs; as JSON lines, one "run" event each and a "note" for a remark."""
    with display(**show_options) as show:
        for line in lines:
            if not isinstance(show, JsonLines):
                sys.stdout.write(f"{line}\n")
            elif line.startswith("#"):
                show(Note(line.removeprefix("#").strip()))
            else:
                show.write("run", {"command": line})
    return 0


def evaluate(argv: Sequence[str]) -> int:
    """Measure a model and print the figures; an interrupted evaluation prints those measured so far."""
    target = "kinema.evaluation.options:EvaluateOptions"
    given, show_options = _read(target, argv, "kinema evaluate", EVALUATE_ABOUT, EVALUATE_EXAMPLE, EVALUATE_GROUPS)
    options = registry.resolve(target)(**given)
    with display(**show_options) as show:
        result = registry.resolve("kinema.evaluation.run:evaluate")(options, on_event=show)
        if isinstance(show, JsonLines):
            show.write("result", json.loads(result.to_json()))
    if not isinstance(show, JsonLines):
        sys.stdout.write(f"{result.table()}\n")
    return INTERRUPTED if result.partial else 0


def _read(
    target: str,
    argv: Sequence[str],
    prog: str,
    about: str,
    example: str,
    groups: Mapping[str, Sequence[str]],
    more: Sequence[Option] = (),
) -> tuple[dict[str, Any], dict[str, bool]]:
    """(fields the user set of the options dataclass ``target``, options of `display`)."""
    options: list[Option] = from_dataclass(registry.resolve(target), positional=["model"])
    given = parse([*options, *more, *REPORTING, CONFIG], argv, prog, about, example, groups)
    show_options = {o.name: given.pop(o.name, False) for o in REPORTING}
    given.pop("config", None)
    return given, show_options
