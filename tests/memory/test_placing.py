"""Offloaded weights of a foreign file are read one by one, whatever its layout."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from kinema import registry
from kinema.checkpoints.convert import convert
from kinema.memory.placing import from_disk
from kinema.system import open_system


@pytest.mark.parametrize(
    ("name", "layout", "changes"),
    [("svd", "sgm", {}), ("animatediff", "official", {"motion": "none", "motion_mid": False})],
)
def test_reading_one_weight_does_not_convert_the_whole_file(tmp_path, monkeypatch, name, layout, changes):
    family = registry.family(name)
    config = replace(family.presets["tiny"], **changes)
    note = json.dumps({"family": name, "config": family.to_json(config)})
    weights = {key: tensor.contiguous() for key, tensor in family.build(config).state_dict().items()}
    save_file(weights, tmp_path / "own.safetensors", {"kinema": note})
    convert(tmp_path / "own.safetensors", tmp_path / "foreign.safetensors", layout)
    system = open_system(tmp_path / "foreign.safetensors")
    monkeypatch.setattr(family.checkpoints, "convert", None)
    read = from_disk(system)
    assert not system.weights.own
    assert all(torch.equal(read(key), weights[key]) for key, _ in family.build(system.config).named_parameters())
