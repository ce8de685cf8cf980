"""Linear layers with a low-rank addition that is trained while the layer itself stands still (Hu et al. 2021).

The layer keeps its name, its weight and its bias; the addition is two parameters more, ``lora_down`` [rank, in] and
``lora_up`` [out, rank]: ``y = W x + b + (alpha / rank) · up (down x)``. ``up`` begins at zero, so that a network
that has just been adapted is the network that it was.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DOWN, UP = "lora_down", "lora_up"


class LoraLinear(nn.Linear):
    """A linear layer with its addition; shares the weight and bias of the layer it is made of."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.scale = alpha / rank
        self.lora_down = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_up = nn.Parameter(base.weight.new_zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.lora_down), self.lora_up)


def adapt(
    model: nn.Module, wanted: str | Callable[[str], bool], rank: int, alpha: float, generator: torch.Generator
) -> list[str]:
    """Freeze a network and give these linear layers of it an addition, in place; returns their names.

    ``wanted`` is a regular expression that a layer's whole name must match, or a function of the name. ``down`` is
    drawn uniformly from ±1/sqrt(in), as peft and kohya do. Raises ValueError where no layer is wanted.
    """
    is_wanted = wanted if callable(wanted) else lambda name: re.fullmatch(wanted, name) is not None
    names = [name for name, module in model.named_modules() if type(module) is nn.Linear and is_wanted(name)]
    if not names:
        raise ValueError("no linear layer of this network is wanted")
    model.requires_grad_(False)
    for name in names:
        parent, _, last = name.rpartition(".")
        layer = LoraLinear(cast(nn.Linear, model.get_submodule(name)), rank, alpha)
        bound = 1 / math.sqrt(layer.in_features)
        drawn = torch.rand(layer.lora_down.shape, generator=generator) * (2 * bound) - bound
        with torch.no_grad():
            layer.lora_down.copy_(drawn)
        setattr(model.get_submodule(parent), last, layer)
    return names
