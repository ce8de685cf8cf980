"""``kinema train --shipped NAME``: the sequence of runs that reproduces a shipped weight file."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kinema import registry
from kinema.atomic import replacing
from kinema.events import Note, OnEvent, ignore
from kinema.schema import BadRequest
from kinema.system.legs import ShippedRun
from kinema.training.options import TrainOptions
from kinema.training.run import TrainResult, train

FREE = (
    *("out", "steps", "batch", "seed", "precision", "device", "threads", "compile", "max_bad_steps"),
    *("accumulate", "checkpoint_activations"),
    *("save_every", "sample_every", "validate_every", "keep"),
)
"""Options that the user may set; each run defines the others."""


@dataclass(frozen=True)
class Planned:
    """A run: ``options.model`` is its initial weight file, grown from ``grown_from`` if that is set."""

    leg: ShippedRun
    options: TrainOptions
    grown_from: Path | None = None

    @property
    def output(self) -> Path:
        return Path(self.options.out) / self.leg.makes


def plan(name: str, given: Mapping[str, Any]) -> dict[str, Planned]:
    """The runs by name, in order, with the user's options applied to all (`TrainOptions` by name).

    Raises BadRequest for weights that are not shipped, and for options that the runs define.
    """
    if odd := sorted(given.keys() - {*FREE}):
        raise BadRequest(f"{odd[0]} is set by the runs of {name}; leave it out, or leave out --shipped")
    every = [registry.resolve(target) for target in registry.SHIPPED.values()]
    found = next((shipped for shipped in every if name in shipped.files), None)
    if found is None:
        raise BadRequest(registry.unknown_name("shipped weight file", name, [n for s in every for n in s.files]))
    out = Path(given.get("out", f"runs/{name}"))
    legs = found.towards(name)
    files = {of: out / of / leg.makes for of, leg in legs.items()}
    runs = {}
    for of, leg in legs.items():
        own = leg.filled(files)
        seed = own.get("seed", 0) + given.get("seed", 0)
        options = TrainOptions(**{**own, **given, "seed": seed, "out": str(out / of)})
        runs[of] = Planned(leg, options)
        if leg.grow:
            start = out / f"{of}-start.safetensors"
            runs[of] = Planned(leg, replace(options, model=str(start)), Path(options.model))
    return runs


def of_preset(given: Mapping[str, Any]) -> str | None:
    """The file whose runs train the preset ``given["model"]``, if it takes several and no other run is asked for."""
    if given.keys() - {"model", *FREE}:
        return None
    every = [registry.resolve(target) for target in registry.SHIPPED.values()]
    return next((file for shipped in every if (file := shipped.presets.get(given.get("model")))), None)


def lines(name: str, given: Mapping[str, Any]) -> list[str]:
    """The plan as shell commands, with comments for grown models."""
    result = []
    for planned in plan(name, given).values():
        if planned.grown_from:
            result.append(f"# {planned.options.model} is grown from {planned.grown_from}")
        plain = TrainOptions()
        options = {k: v for k, v in vars(planned.options).items() if k != "model" and v != getattr(plain, k)}
        words = [word for k, v in options.items() for word in _words(k, v)]
        result.append(shlex.join(["kinema", "train", planned.options.model, *words]))
    return result


def _words(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    return [flag] if value is True else [flag, value if isinstance(value, str) else json.dumps(value)]


def train_shipped(name: str, given: Mapping[str, Any], on_event: OnEvent = ignore) -> TrainResult:
    """Train all runs, resuming finished and interrupted ones, and write the weight file to ``out`` under its name.

    An interrupted call returns the result of the interrupted run. Raises what `plan` and `train` raise.
    """
    planned, result = plan(name, given), None
    for i, (leg, each) in enumerate(planned.items(), 1):
        on_event(Note(f"{name}: {leg}, run {i} of {len(planned)}"))
        start = Path(each.options.model)
        if each.leg.grow and each.grown_from and not start.exists():
            each.leg.grow(each.grown_from, start, on_event)
        result = train(each.options, on_event)
        if result.interrupted:
            return result
    assert result is not None  # every shipped file has a run
    last = [*planned.values()][-1]
    target = Path(last.options.out).parent / f"{name}.safetensors"
    with replacing(target) as part:
        shutil.copyfile(last.output, part)
    return replace(result, folder=target.parent, weights=target)
