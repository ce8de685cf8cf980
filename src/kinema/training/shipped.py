"""``kinema train --shipped NAME``: the runs that make a file of weights that ships, one after the other."""

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
from kinema.system.legs import Leg
from kinema.training.options import TrainOptions
from kinema.training.run import TrainResult, train

FREE = (
    *("out", "steps", "batch", "seed", "precision", "device", "threads", "compile", "max_bad_steps"),
    *("accumulate", "checkpoint_activations"),
    *("save_every", "sample_every", "validate_every", "keep"),
)
"""Options that the user may tell; all others are the legs'."""


@dataclass(frozen=True)
class Planned:
    """A leg and its run; ``options.model`` is what the run begins as, ``grown_from`` what that is made of."""

    leg: Leg
    options: TrainOptions
    grown_from: Path | None = None

    @property
    def made(self) -> Path:
        return Path(self.options.out) / self.leg.makes


def plan(name: str, told: Mapping[str, Any]) -> dict[str, Planned]:
    """The runs, by leg and in order, with what the user tells of all of them (`TrainOptions` by name).

    Raises BadRequest for weights that do not ship, and for options that are the legs'.
    """
    if odd := sorted(told.keys() - {*FREE}):
        raise BadRequest(f"{odd[0]} is set by the runs that make {name}; leave it out, or leave out shipped")
    every = [registry.resolve(target) for target in registry.SHIPPED.values()]
    found = next((shipped for shipped in every if name in shipped.files), None)
    if found is None:
        raise BadRequest(registry.unknown("file of weights that ships", name, [n for s in every for n in s.files]))
    out = Path(told.get("out", f"runs/{name}"))
    legs = found.towards(name)
    files = {of: out / of / leg.makes for of, leg in legs.items()}
    made = {}
    for of, leg in legs.items():
        own = leg.filled(files)
        seed = own.get("seed", 0) + told.get("seed", 0)
        options = TrainOptions(**{**own, **told, "seed": seed, "out": str(out / of)})
        made[of] = Planned(leg, options)
        if leg.grow:
            start = out / f"{of}-start.safetensors"
            made[of] = Planned(leg, replace(options, model=str(start)), Path(options.model))
    return made


def lines(name: str, told: Mapping[str, Any]) -> list[str]:
    """The plan as commands, and a remark where a model is grown."""
    said = []
    for planned in plan(name, told).values():
        if planned.grown_from:
            said.append(f"# {planned.options.model} is grown from {planned.grown_from}")
        plain = TrainOptions()
        given = {k: v for k, v in vars(planned.options).items() if k != "model" and v != getattr(plain, k)}
        words = [word for k, v in given.items() for word in _words(k, v)]
        said.append(shlex.join(["kinema", "train", planned.options.model, *words]))
    return said


def _words(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    return [flag] if value is True else [flag, value if isinstance(value, str) else json.dumps(value)]


def train_shipped(name: str, told: Mapping[str, Any], on_event: OnEvent = ignore) -> TrainResult:
    """Train leg by leg; called again, go on with what is there. The file stands in ``out`` under its name.

    An interruption ends with the result of the leg that it met. Raises what `plan` and `train` raise.
    """
    planned, result = plan(name, told), None
    for i, (leg, each) in enumerate(planned.items(), 1):
        on_event(Note(f"{name}: {leg}, run {i} of {len(planned)}"))
        start = Path(each.options.model)
        if each.leg.grow and each.grown_from and not start.exists():
            each.leg.grow(each.grown_from, start, on_event)
        result = train(each.options, on_event)
        if result.interrupted:
            return result
    assert result is not None  # a file that ships has a leg that makes it
    last = [*planned.values()][-1]
    target = Path(last.options.out).parent / f"{name}.safetensors"
    with replacing(target) as part:
        shutil.copyfile(last.made, part)
    return replace(result, folder=target.parent, weights=target)
