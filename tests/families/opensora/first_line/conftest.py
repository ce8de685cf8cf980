"""What tools/record_opensora_samplers.py recorded from Open-Sora 1.0 to 1.3, and what it was recorded with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

RECORDED = Path(__file__).parents[1] / "recorded"


def normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float()


def stand_in(z: Tensor, time: Tensor, generated: Tensor | None, text: Tensor, cond: Tensor | None = None) -> Tensor:
    """The map that stood in for the network: z B×C×T×H×W to 2C channels; text [B], cond B×2C×T×H×W."""
    _, c, t, h, w = z.shape
    mix, frames, rest = normal(1, 2 * c, c) * 0.15, normal(2, t, t) * 0.15, normal(3, 4, 2 * c, 1, h, w) * 0.3
    out = torch.einsum("oc,bcthw->bothw", mix, z)
    out = out + torch.einsum("ts,bcshw->bcthw", frames, torch.cat([z, z.roll(1, 3)], 1))
    out[:, :c] += 0.9 * z
    out = out + rest[0] * torch.sin(time / 150).reshape(-1, 1, 1, 1, 1) + 0.1 * rest[1] * text.reshape(-1, 1, 1, 1, 1)
    if cond is not None:
        out = out + 0.5 * cond.roll(1, 4)
    if generated is not None:
        out = torch.where(generated[:, None, :, None, None], out, 0.6 * out + rest[2])
    return torch.cat([out[:, :c], out[:, c:].tanh()], 1)


class Draws:
    """In place of `Noise`: the original's draws of these numbers, in turn."""

    def __init__(self, numbers: Iterator[int]) -> None:
        self.numbers = numbers

    def like(self, z: Tensor) -> Tensor:
        return normal(100 + next(self.numbers), *z.shape)


Recorded = Callable[[str], tuple[dict[str, Tensor], dict[str, Any]]]


@pytest.fixture(scope="session")
def recorded() -> Recorded:
    """The tensors of a recording, and what its metadata say."""

    def read(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        with safe_open(RECORDED / f"samplers-{name}.safetensors", "pt") as file:
            told = {key: json.loads(each) for key, each in file.metadata().items() if key not in ("commit", "script")}
            return {key: file.get_tensor(key) for key in file.keys()}, told

    return read
