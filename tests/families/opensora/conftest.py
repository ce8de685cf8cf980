"""Recorded tensors of the original code, and models with the weights that they were recorded with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kinema.families.opensora.config import TINY, Config
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
