"""Tiny networks with random weights, batches, and a network of fixed output that keeps what it is called with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinema.families.opensora.family import FAMILY
from kinema.system import Batch

HEIGHT, WIDTH = 16, 24


@pytest.fixture
def network() -> Callable[[str], tuple[Any, nn.Module]]:
    """The config and network of a preset. Untrained heads are zero, which would make many claims trivially true."""

    def build(preset: str) -> tuple[Any, nn.Module]:
        torch.manual_seed(0)
        config = FAMILY.presets[preset]
        model = FAMILY.build(config).train()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight) * 0.05)
        return config, model

    return build


@pytest.fixture
def batch() -> Callable[..., Batch]:
    def make(config: Any, clips: int = 3, caption: str = "a red ball rolls right", **fields: Any) -> Batch:
        frames = config.frames
        video = torch.rand(clips, 3, frames, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2)) * 2 - 1
        return Batch(video, [caption] * clips, torch.zeros(clips, 1, frames, HEIGHT, WIDTH), **fields)

    return make


class Fixed(nn.Module):
    """In the place of an STDiT: the same output at every call, plus what a test adds to it."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.x_embedder, self.y_embedder = transformer.x_embedder, transformer.y_embedder
        self.seen: dict[str, Any] = {}
        self.added: Tensor | float = 0.0

    def forward(self, z: Tensor, time: Tensor, states: Tensor, tokens: Tensor, **inputs: Any) -> Tensor:
        self.seen = {"z": z, "time": time, "states": states, "tokens": tokens, **inputs}
        output = torch.randn(z.shape[0], 2 * z.shape[1], *z.shape[2:], generator=torch.Generator().manual_seed(3))
        return 0.7 * output + self.added


@pytest.fixture
def fixed() -> type[Fixed]:
    return Fixed
