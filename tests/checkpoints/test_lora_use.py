"""The hash of a LoRA in a recipe identifies all that it changes a network by."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from kinema.checkpoints.files import weight_hash
from kinema.checkpoints.lora_use import read_loras

LAYER = "unet.block.q"


def lora_hash(path: Path) -> str:
    (file,) = read_loras({path: 1.0}, {f"{LAYER}.weight": torch.Size((8, 6))}, {}, "a model")
    assert file.to_recipe()["hash"] == file.hash
    return file.hash


def save(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file({f"{LAYER}.lora_A.weight": torch.ones(2, 6), f"{LAYER}.lora_B.weight": torch.ones(8, 2)}, path)
    return path


def test_the_hash_of_a_single_file_is_that_of_its_weights(tmp_path: Path) -> None:
    """Also next to a config of another LoRA in the folder, which is not read."""
    path = save(tmp_path / "a.safetensors")
    save(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8}))
    assert lora_hash(path) == weight_hash(path)
    alone = save(tmp_path / "alone" / "adapter_model.safetensors")
    assert lora_hash(alone) == lora_hash(alone.parent) == weight_hash(alone)


def test_the_hash_counts_the_alphas_that_peft_saved_next_to_the_weights(tmp_path: Path) -> None:
    path, config = save(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_config.json"
    seen = {weight_hash(path)}
    for settings in ({"lora_alpha": 8}, {"lora_alpha": 4}, {"lora_alpha": 4, "alpha_pattern": {"q": 2}}):
        config.write_text(json.dumps(settings))
        found = lora_hash(path)
        assert found == lora_hash(tmp_path)
        assert found.startswith("sha256-peft:")
        assert found not in seen
        seen.add(found)
        config.write_text(json.dumps({"inference_mode": True, **settings}, indent=2))
        assert lora_hash(path) == found
