"""Recorded tensors of the original code, and models with the weights that they were recorded with."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kinema.families.opensora.config import TINY, Config
from kinema.families.opensora.family import FAMILY
from kinema.families.opensora.mmdit import MMDiTConfig

RECORDED = Path(__file__).parent / "recorded"
"""Made by tools/record_opensora.py from hpcaitech/Open-Sora at 7ad6a96."""
MMDIT = MMDiTConfig(
    channels=5,
    text=24,
    vector=12,
    width=48,
    heads=3,
    mlp=3.0,
    double_blocks=2,
    single_blocks=3,
    axes=(4, 6, 6),
)
"""That of the recordings, with the published layout of rotary embeddings."""


def filled(model: nn.Module, seed: int, std: float = 0.15) -> nn.Module:
    """The model with weights in the order of parameters' names, as tools/record_opensora.py draws them."""
    draw = np.random.RandomState(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.copy_(torch.from_numpy(draw.standard_normal(tuple(parameter.shape)) * std))
    return model.eval()


@pytest.fixture(scope="session")
def fill() -> Callable[..., nn.Module]:
    return filled


@pytest.fixture(scope="session")
def mmdit() -> MMDiTConfig:
    return MMDIT


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], dict[str, Tensor]]:
    return lambda name: load_file(RECORDED / f"{name}.safetensors")


@pytest.fixture
def config() -> Config:
    """A model with the recorded transformer, and a codec of as many channels."""
    return replace(TINY, transformer=MMDIT, hunyuan=replace(TINY.hunyuan, latent=5))


@pytest.fixture(scope="session")
def sparse() -> Callable[..., Path]:
    """Writes the file of a model of any size, which takes no room on the disk."""

    def write(path: Path, config: Any) -> Path:
        """A file of the model in bfloat16 with its real header and no data: the disk holds nothing of its 24 GB."""
        with torch.device("meta"):
            model = FAMILY.build(config)
        note = json.dumps({"family": "opensora", "config": FAMILY.to_json(config)})
        header: dict[str, object] = {"__metadata__": {"kinema": note}}
        at = 0
        for name, tensor in model.state_dict().items():
            end = at + 2 * tensor.numel()
            header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [at, end]}
            at = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + at)
        return path

    return write
