"""LoRA: frozen linear layers with a trainable low-rank update (Hu et al. 2021).

A layer keeps its name, weight and bias, and gains two parameters, ``lora_down`` [rank, in] and ``lora_up``
[out, rank]: ``y = W x + b + (alpha / rank) · up (down x)``. ``up`` is initialised to zero, so an adapted network
initially computes the same function.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.nn.linear import Linear

DOWN, UP = "lora_down", "lora_up"


class LoraLinear(Linear):
    """A linear layer with a low-rank update; shares the weight and bias of its base layer."""

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
    """Freeze a network and add a low-rank update to the selected linear layers, in place; returns their names.

    ``wanted`` is a regular expression that a layer's whole name must match, or a predicate on the name. ``down`` is
    sampled uniformly from ±1/sqrt(in), as in peft and kohya. Raises ValueError if no layer is selected.
    """
    is_wanted = wanted if callable(wanted) else lambda name: re.fullmatch(wanted, name) is not None
    names = [name for name, module in model.named_modules() if type(module) in (nn.Linear, Linear) and is_wanted(name)]
    if not names:
        raise ValueError("no linear layer of this network is selected")
    model.requires_grad_(False)
    for name in names:
        parent, _, last = name.rpartition(".")
        layer = LoraLinear(cast(nn.Linear, model.get_submodule(name)), rank, alpha)
        bound = 1 / math.sqrt(layer.in_features)
        values = torch.rand(layer.lora_down.shape, generator=generator) * (2 * bound) - bound
        with torch.no_grad():
            layer.lora_down.copy_(values)
        setattr(model.get_submodule(parent), last, layer)
    return names
