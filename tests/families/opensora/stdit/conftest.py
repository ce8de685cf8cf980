"""Recorded tensors of the original transformers, and ours with the weights that they were recorded with."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kinema.families.opensora.stdit.config import STDiTConfig
from kinema.families.opensora.stdit.network import STDiT, build

RECORDED = Path(__file__).parents[1] / "recorded"
"""Made by tools/record_stdit.py from hpcaitech/Open-Sora at d7518da, c37e6d6, bde3c42 and 2ca632a."""
SIZES = {"channels": 5, "width": 72, "heads": 3, "depth": 2, "mlp": 2.5, "text": 20, "tokens": 11}
CONFIGS = {
    "1.0": STDiTConfig("1.0", **SIZES, qk_norm=False, space_scale=0.5, time_scale=2 / 3),
    "1.1": STDiTConfig("1.1", **SIZES, rotate_first=True),
    "1.2": STDiTConfig("1.2", **SIZES),
    "1.3": STDiTConfig("1.3", **SIZES, window=(3, 2), spatial_rope=True),
}
"""Those of the recordings."""


def filled(config: STDiTConfig) -> STDiT:
    """Our network with weights in the order of tensors' names, as tools/record_stdit.py draws them."""
    network, draw = build(config), np.random.RandomState(21)
    with torch.no_grad():
        for name, tensor in sorted(network.state_dict().items()):
            if name != "rope.freqs":
                values = draw.standard_normal(tuple(tensor.shape)) * 0.12 + ("_norm." in name)
                tensor.copy_(torch.from_numpy(values))
    return network.eval()


@pytest.fixture(scope="session")
def fill() -> Callable[[STDiTConfig], STDiT]:
    return cache(filled)


@pytest.fixture(scope="session")
def configs() -> dict[str, STDiTConfig]:
    return CONFIGS


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], dict[str, Tensor]]:
    return cache(lambda version: load_file(RECORDED / f"stdit-{version}.safetensors"))
