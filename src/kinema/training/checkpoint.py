"""Training checkpoints: one safetensors file each, written atomically.

``step-00001000.safetensors`` holds the trained weights (``raw.``), their average (``ema.``), the optimiser state
(``optim.``) and the generator state (``rng``), but no frozen weights; its metadata holds the run state
(``kinema-training``) and the model (``kinema-model``). Older checkpoints are deleted only after the new one is
complete.
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

from kinema.bounds import first_names, from_json, quoted
from kinema.checkpoints import files
from kinema.checkpoints.settings import naming_faults
from kinema.events import Note, OnEvent
from kinema.schema import BadRequest
from kinema.training.ema import EMA
from kinema.values import mismatch

_NAMES = "step-*.safetensors"
MOST = 2**62
"""Limit of counters and seeds."""
_SIGNED = ("best", "loss")
"""Fields of a `State` that may be negative."""
_MOMENTUM = re.compile(r"optim\.(?P<optimiser>\d{1,3})\.(?P<weight>\d{1,6})\.(?P<what>\w+)")
_MOMENTA = {"AdamW": {"step", "exp_avg", "exp_avg_sq"}, "Muon": {"momentum_buffer"}}
"""The state that each optimiser keeps for a weight."""


@dataclass
class State:
    """The state of a run; ``step`` counts finished optimiser steps, which is also the position in the data."""

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
    """Loss of the last step, None if it was not finite."""
    batch: int | None = None
    data: dict[str, Any] = field(default_factory=dict)
    """Identity of the training data; a resumed run must have the same."""
    trains: str = "all"
    """The trained part of the network, and the LoRA."""
    base: str | None = None
    """Hash of the frozen weights, which checkpoints do not hold; None if all are trained."""


def name(step: int) -> str:
    return f"step-{step:08d}.safetensors"


def newest(folder: Path, on_event: OnEvent) -> Path | None:
    """The newest intact checkpoint of a run; damaged ones are renamed and reported.

    Raises BadRequest if there are checkpoints but none is readable, rather than restarting over them.
    """
    found = sorted(folder.glob(_NAMES), reverse=True)
    for path in found:
        try:
            files.metadata(path)
        except BadRequest as error:
            aside = path.with_suffix(".damaged")
            path.replace(aside)
            on_event(Note(f"{error}; renamed it to {aside.name}, trying an older checkpoint"))
        else:
            return path
    damaged = sorted(folder.glob("step-*.damaged"))
    if damaged:  # also on later attempts: never restart a run over its damaged checkpoints
        raise BadRequest(f"{folder} has only damaged checkpoints ({len(damaged)}); restart in another folder")
    return None


def save(
    folder: Path, state: State, model: nn.Module, ema: EMA, optimisers: Sequence[Optimizer], description: str, keep: int
) -> Path:
    """Write ``step-N``, then delete all but the ``keep`` newest checkpoints."""
    state.ema_updates = ema.updates
    weights = model.state_dict()
    tensors = {f"raw.{k}": weights[k] for k in ema.shadow}
    tensors |= {f"ema.{k}": v for k, v in ema.shadow.items()}
    tensors |= _optimiser_tensors(optimisers)
    tensors["rng"] = torch.get_rng_state()
    path = folder / name(state.step)
    files.write_tensors(path, tensors, {"kinema-training": json.dumps(vars(state)), "kinema-model": description})
    for old in sorted(folder.glob(_NAMES))[:-keep]:
        old.unlink()
    return path


def peek(path: Path) -> tuple[State, str]:
    """The run state and the model description of a checkpoint, without reading tensors."""
    metadata = files.metadata(path)
    if "kinema-training" not in metadata or "kinema-model" not in metadata:
        raise BadRequest(f"{path} is not a training checkpoint; expected one that `kinema train` wrote")
    values = from_json(metadata["kinema-training"], f"the run state in {path}")
    if not isinstance(values, dict):
        raise BadRequest(f"{path} is damaged: its run state is {quoted(values)}")
    if unknown := sorted(set(values) - {f.name for f in fields(State)}):
        raise BadRequest(f"{path} was written by a later version of kinema (unknown field {quoted(unknown[0])})")
    if wrong := mismatch(State, values):
        raise BadRequest(f"{path} is damaged: {wrong}")
    for known, value in values.items():  # fail now, not minutes into the resumed run
        out_of_range = isinstance(value, int | float) and known not in _SIGNED and not 0 <= value < MOST
        if out_of_range or (known == "data" and value and "source" not in value):
            raise BadRequest(f"{path} is damaged: its {known} is {quoted(value)}")
    return State(**values), metadata["kinema-model"]


def load(path: Path, model: nn.Module, ema: EMA, optimisers: Sequence[Optimizer]) -> State:
    """Restore a run exactly; raises BadRequest if the file belongs to another model or optimiser."""
    state, _ = peek(path)
    tensors = files.read_tensors(path)
    current = model.state_dict()
    weights = {f"raw.{k}": current[k] for k in ema.shadow} | {f"ema.{k}": v for k, v in ema.shadow.items()}
    momenta = {k: v for k, v in tensors.items() if k.startswith("optim.")}
    if odd := (set(tensors) - set(momenta) - {"rng"}) ^ set(weights):
        raise BadRequest(f"{path} belongs to another network ({first_names([min(odd)])} is in only one of them)")
    for key, value in weights.items():
        if tensors[key].shape != value.shape:
            raise BadRequest(f"{path} belongs to another network ({key} differs in shape)")
        if value.is_floating_point() and not tensors[key].is_floating_point():
            raise BadRequest(f"{path} is damaged: {key} is {tensors[key].dtype}")
    generator = tensors.get("rng")
    if generator is None or (generator.dtype, generator.shape) != (torch.uint8, torch.get_rng_state().shape):
        raise BadRequest(f"{path} is damaged: it has no valid random generator state")
    _restore_optimisers(path, optimisers, momenta)
    model.load_state_dict({k: tensors[f"raw.{k}"] for k in ema.shadow}, strict=False)
    for key, value in ema.shadow.items():
        value.copy_(tensors[f"ema.{key}"])
    with naming_faults(str(path)):
        torch.set_rng_state(generator.clone())
    ema.updates = state.ema_updates
    return state


def export(path: Path, trained: Mapping[str, Tensor], frozen: Mapping[str, Tensor], description: str) -> Path:
    """Write weights as a model file for `kinema.load`: those that were trained in fp16, without visible loss.

    Frozen ones keep their values to the bit, in fp16 where that holds them.
    """
    tensors = {name: _halved(tensor) for name, tensor in trained.items()}
    for name, tensor in frozen.items():
        half = _halved(tensor)
        tensors[name] = half if torch.equal(half.to(tensor.dtype), tensor) else tensor
    files.write_tensors(path, tensors, {"kinema": description})
    return path


def _halved(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


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
            raise BadRequest(f"{path} was trained with another optimiser ({first_names([key])} does not fit)")
        if not value.is_floating_point() or (found["what"] == "step") != (value.ndim == 0 < owned[i][j].ndim):
            raise BadRequest(f"{path} is damaged: {first_names([key])} is {value.dtype} with {value.ndim} dimensions")
        states[i].setdefault(j, {})[found["what"]] = value.clone()
    for optimiser, state in zip(optimisers, states, strict=True):
        if any(entry.keys() != _MOMENTA[type(optimiser).__name__] for entry in state.values()):
            raise BadRequest(f"{path} is damaged: its optimiser state is incomplete")
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
