"""Training checkpoints: one safetensors file each, complete or absent.

``step-00001000.safetensors`` holds the trained weights (``raw.``), their average (``ema.``), the optimisers'
state (``optim.``) and the generator (``rng``), and nothing of what stands still; its metadata holds where the
run stands (``kinema-training``) and the model (``kinema-model``). Files are written beside and renamed, so a
killed run leaves the previous one; nothing older is deleted before the new one stands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kinema.bounds import few, from_json, quoted
from kinema.checkpoints import files
from kinema.checkpoints.settings import readable
from kinema.events import Note, OnEvent
from kinema.schema import BadRequest
from kinema.training.ema import EMA
from kinema.values import misfit

_NAMES = "step-*.safetensors"
MOST = 2**62
"""Of a counter or a seed."""
_SIGNED = ("best", "loss")
"""The numbers of a `State` that may be below zero."""
_MOMENTUM = re.compile(r"optim\.(?P<optimiser>\d{1,3})\.(?P<weight>\d{1,6})\.(?P<what>\w+)")
_MOMENTA = {"AdamW": {"step", "exp_avg", "exp_avg_sq"}, "Muon": {"momentum_buffer"}}
"""What each optimiser keeps of a weight."""


@dataclass
class State:
    """Where a run stands; ``step`` counts finished optimiser steps, which is also the data position."""

    step: int = 0
    seed: int = 0
    precision: str = "fp32"
    best: float | None = None
    bad_steps: int = 0
    bad_in_row: int = 0
    ema_updates: int = 0
    seconds: float = 0.0
    history: list[dict[str, float | None]] = field(default_factory=list)
    loss: float | None = None
    """Loss of the last step, None where it was not finite."""
    batch: int | None = None
    data: dict[str, Any] = field(default_factory=dict)
    """What the batches were made of: a resumed run must say the same."""
    trains: str = "all"
    """The part of the network that is trained, and the LoRA."""
    base: str | None = None
    """Hash of the weights that stand still, which checkpoints do not hold; None where all are trained."""


def name(step: int) -> str:
    return f"step-{step:08d}.safetensors"


def newest(folder: Path, on_event: OnEvent) -> Path | None:
    """The newest checkpoint of a run that is whole; a damaged one is set aside, and said so.

    Raises BadRequest when there are checkpoints and none can be read: starting anew over them would be worse.
    """
    found = sorted(folder.glob(_NAMES), reverse=True)
    for path in found:
        try:
            files.metadata(path)
        except BadRequest as error:
            aside = path.with_suffix(".damaged")
            path.replace(aside)
            on_event(Note(f"{error}; it is now {aside.name}, and an older checkpoint is looked for"))
        else:
            return path
    damaged = sorted(folder.glob("step-*.damaged"))
    if damaged:  # also on the second try: a run that had checkpoints is never begun anew over what is left of it
        raise BadRequest(
            f"none of the {len(damaged)} checkpoints in {folder} can be read; begin anew in another folder"
        )
    return None


def save(
    folder: Path, state: State, model: nn.Module, ema: EMA, optimisers: Sequence[Optimizer], note: str, keep: int
) -> Path:
    """Write ``step-N`` and then drop all but the ``keep`` newest."""
    state.ema_updates = ema.updates
    held = model.state_dict()
    tensors = {f"raw.{k}": held[k] for k in ema.shadow}
    tensors |= {f"ema.{k}": v for k, v in ema.shadow.items()}
    tensors |= _optimiser_tensors(optimisers)
    tensors["rng"] = torch.get_rng_state()
    path = folder / name(state.step)
    files.write_tensors(path, tensors, {"kinema-training": json.dumps(vars(state)), "kinema-model": note})
    for old in sorted(folder.glob(_NAMES))[:-keep]:
        old.unlink()
    return path


def peek(path: Path) -> tuple[State, str]:
    """Where the run of a checkpoint stands, and its model's note; no tensor is read."""
    told = files.metadata(path)
    if "kinema-training" not in told or "kinema-model" not in told:
        raise BadRequest(f"{path} is not a training checkpoint; expected one that `kinema train` wrote")
    values = from_json(told["kinema-training"], f"where the run stands in {path}")
    if not isinstance(values, dict):
        raise BadRequest(f"{path} is damaged: where the run stands in it is {quoted(values)}")
    if unknown := sorted(set(values) - {f.name for f in fields(State)}):
        raise BadRequest(f"{path} was written by a later version of kinema (it tells of {quoted(unknown[0])})")
    if wrong := misfit(State, values):
        raise BadRequest(f"{path} is damaged: {wrong}")
    for known, value in values.items():  # a resumed run would fail on these after minutes
        absurd = isinstance(value, int | float) and known not in _SIGNED and not 0 <= value < MOST
        if absurd or (known == "data" and value and "source" not in value):
            raise BadRequest(f"{path} is damaged: its {known} is {quoted(value)}")
    return State(**values), told["kinema-model"]


def load(path: Path, model: nn.Module, ema: EMA, optimisers: Sequence[Optimizer]) -> State:
    """Restore a run exactly; raises BadRequest when the file is of another model or optimiser."""
    state, _ = peek(path)
    tensors = files.read_tensors(path)
    held = model.state_dict()
    weights = {f"raw.{k}": held[k] for k in ema.shadow} | {f"ema.{k}": v for k, v in ema.shadow.items()}
    momenta = {k: v for k, v in tensors.items() if k.startswith("optim.")}
    if odd := (set(tensors) - set(momenta) - {"rng"}) ^ set(weights):
        raise BadRequest(f"{path} is of another network ({few([min(odd)])} is in one of them only)")
    for key, value in weights.items():
        if tensors[key].shape != value.shape:
            raise BadRequest(f"{path} is of another network ({key} differs in shape)")
        if value.is_floating_point() and not tensors[key].is_floating_point():
            raise BadRequest(f"{path} is damaged: {key} is {tensors[key].dtype}")
    generator = tensors.get("rng")
    if generator is None or (generator.dtype, generator.shape) != (torch.uint8, torch.get_rng_state().shape):
        raise BadRequest(f"{path} is damaged: it holds no state of the random generator")
    _restore_optimisers(path, optimisers, momenta)
    model.load_state_dict({k: tensors[f"raw.{k}"] for k in ema.shadow}, strict=False)
    for key, value in ema.shadow.items():
        value.copy_(tensors[f"ema.{key}"])
    with readable(str(path)):
        torch.set_rng_state(generator.clone())
    ema.updates = state.ema_updates
    return state


def export(path: Path, tensors: Mapping[str, Tensor], note: str) -> Path:
    """Weights as a model file that `kinema.load` opens; fp16, which halves it at no visible loss."""
    halves = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    files.write_tensors(path, halves, {"kinema": note})
    return path


def _optimiser_tensors(optimisers: Sequence[Optimizer]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for i, optimiser in enumerate(optimisers):
        for j, entry in optimiser.state_dict()["state"].items():
            found |= {f"optim.{i}.{j}.{key}": torch.as_tensor(value) for key, value in entry.items()}
    return found


def _restore_optimisers(path: Path, optimisers: Sequence[Optimizer], momenta: Mapping[str, Tensor]) -> None:
    states: list[dict[int, dict[str, Any]]] = [{} for _ in optimisers]
    owned = [[p for group in o.param_groups for p in group["params"]] for o in optimisers]
    for key, value in momenta.items():
        found = _MOMENTUM.fullmatch(key)
        i, j = (int(found["optimiser"]), int(found["weight"])) if found else (len(owned), 0)
        known = i < len(owned) and j < len(owned[i])
        if found is None or not known or value.shape not in (torch.Size(), owned[i][j].shape):
            raise BadRequest(f"{path} was trained with another optimiser ({few([key])} does not fit)")
        if not value.is_floating_point() or (found["what"] == "step") != (value.ndim == 0 < owned[i][j].ndim):
            raise BadRequest(f"{path} is damaged: {few([key])} is {value.dtype} with {value.ndim} axes")
        states[i].setdefault(j, {})[found["what"]] = value.clone()
    for optimiser, state in zip(optimisers, states, strict=True):
        if any(entry.keys() != _MOMENTA[type(optimiser).__name__] for entry in state.values()):
            raise BadRequest(f"{path} is damaged: the state of its optimiser is not whole")
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
