"""Training checkpoints: one safetensors file each, complete or absent.

``step-00001000.safetensors`` holds raw weights (``raw.``), their average (``ema.``) and the optimisers'
state (``optim.``); its metadata holds the step, the options and the history. Files are written beside
and renamed, so a killed run leaves the previous one; nothing older is deleted before the new one stands.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kinema.checkpoints import files
from kinema.schema import BadRequest
from kinema.training.ema import EMA


@dataclass
class State:
    """Where a run stands; ``step`` counts finished optimiser steps, which is also the data position."""

    step: int = 0
    seed: int = 0
    precision: str = "fp32"
    best: float | None = None
    bad_steps: int = 0
    ema_updates: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    found = sorted(folder.glob("step-*.safetensors"))
    return found[-1] if found else None


def save(
    folder: Path, state: State, model: nn.Module, ema: EMA, optimisers: Sequence[Optimizer], note: str, keep: int
) -> Path:
    """Write ``step-N`` and then drop all but the ``keep`` newest."""
    state.ema_updates = ema.updates
    tensors = {f"raw.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.shadow.items()}
    tensors |= _optimiser_tensors(optimisers)
    tensors["rng"] = torch.get_rng_state()
    path = folder / f"step-{state.step:08d}.safetensors"
    files.write_tensors(path, tensors, {"kinema-training": json.dumps(vars(state)), "kinema-model": note})
    for old in sorted(folder.glob("step-*.safetensors"))[:-keep]:
        old.unlink()
    return path


def load(path: Path, model: nn.Module, ema: EMA, optimisers: Sequence[Optimizer]) -> State:
    """Restore a run exactly; raises BadRequest when the file is of another model."""
    told = files.metadata(path).get("kinema-training")
    if told is None:
        raise BadRequest(f"{path} is not a training checkpoint; expected one that `kinema train` wrote")
    tensors = files.read_tensors(path)
    for prefix, target in (("raw.", model.state_dict()), ("ema.", ema.shadow)):
        for name, value in target.items():
            stored = tensors.get(prefix + name)
            if stored is None or stored.shape != value.shape:
                raise BadRequest(f"{path} was trained with another configuration ({name} differs)")
            value.copy_(stored)
    _restore_optimisers(optimisers, tensors)
    torch.set_rng_state(tensors["rng"].clone())
    state = State(**json.loads(told))
    ema.updates = state.ema_updates
    return state


def _optimiser_tensors(optimisers: Sequence[Optimizer]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for i, optimiser in enumerate(optimisers):
        for j, entry in optimiser.state_dict()["state"].items():
            found |= {f"optim.{i}.{j}.{key}": torch.as_tensor(value) for key, value in entry.items()}
    return found


def _restore_optimisers(optimisers: Sequence[Optimizer], tensors: dict[str, Tensor]) -> None:
    states: list[dict[int, dict[str, Any]]] = [{} for _ in optimisers]
    for name, value in tensors.items():
        if name.startswith("optim."):
            _, i, j, key = name.split(".", 3)
            states[int(i)].setdefault(int(j), {})[key] = value.clone()
    for optimiser, state in zip(optimisers, states, strict=True):
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
