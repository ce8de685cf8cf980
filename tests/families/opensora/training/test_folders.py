"""Folders of the original's training runs: sharded weights under ``model``, the average in ``ema.pt``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kinema.system import open_system


@pytest.fixture
def step(tmp_path: Path, network: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    """``epoch0-global_step100`` as ColossalAI and the original write it; what has no weights is left out."""
    _, model = network("tiny-1.2")
    state = model.state_dict().items()
    tensors = {n.removeprefix("transformer."): x for n, x in state if n.startswith("transformer.")}
    folder = tmp_path / "000-STDiT3-XL-2" / "epoch0-global_step100"
    (folder / "model").mkdir(parents=True)
    names = [*tensors]
    shards = {f"pytorch_model-{i + 1:05d}.bin": names[i::2] for i in range(2)}
    for file, part in shards.items():
        torch.save({name: tensors[name].clone() for name in part}, folder / "model" / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    torch.save({name: x + 1 for name, x in tensors.items()}, folder / "ema.pt")
    (folder / "running_states.json").write_text(json.dumps({"epoch": 0, "step": 100}))
    return folder, tensors


@pytest.mark.parametrize(("inside", "more"), [("model", 0.0), ("ema.pt", 1.0), ("", 1.0)])
def test_the_weights_and_their_average_open_as_models(inside: str, more: float, step: Any) -> None:
    """The folder of a step is its average, where there is one."""
    folder, tensors = step
    system = open_system(folder / inside)
    assert system.config.version == "1.2"
    assert system.config.absent == ("vae",)
    found = system.family.checkpoints.convert(system.config, system.weights.source.tensors())
    assert {name.removeprefix("transformer.") for name in found} == set(tensors)
    for name, x in tensors.items():
        assert torch.equal(found[f"transformer.{name}"], x + more)
