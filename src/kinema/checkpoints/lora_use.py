"""LoRA files as a user names them: read, checked against one model, and remembered for the recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kinema import registry
from kinema.checkpoints import files
from kinema.checkpoints.lora_formats import Lora, Merged, check_shapes, is_lora, read_lora
from kinema.checkpoints.signatures import describe, lora_kind
from kinema.checkpoints.source import Source
from kinema.schema import BadRequest, plain

MOST = 100.0
"""Largest size of a weight: people use -2 to 2."""


@dataclass(frozen=True, eq=False)
class LoraFile:
    """A LoRA in use: its file, its weight, and the adapters in it by our module names.

    Two readings of one file are two: it may have changed between them.
    """

    path: Path
    weight: float
    lora: Lora = field(repr=False)

    @cached_property
    def hash(self) -> str:
        return files.weight_hash(self.path)

    def told(self) -> dict[str, Any]:
        """What the recipe says of it."""
        return {"file": registry.called(self.path), "weight": self.weight, "hash": self.hash}


class Loras:
    """The LoRAs in use: all of a system that may change after it was opened (`kinema.system.System.use_loras`)."""

    def __init__(self) -> None:
        self.files: tuple[LoraFile, ...] = ()
        self.settled = True
        """Whether the networks have exactly these in them; not where a change was broken off."""
        self._networks: list[Merged] = []

    def use(self, files: tuple[LoraFile, ...]) -> None:
        """These and no others, in every network filled so far."""
        self.settled = False
        for merged in self._networks:
            merged.set([(file.lora, file.weight) for file in files])
        self.files, self.settled = files, True

    def fill(self, model: nn.Module) -> nn.Module:
        """Merge them into a network that has none in it, and keep it for the next change."""
        merged = Merged(model)
        merged.set([(file.lora, file.weight) for file in self.files])
        self._networks = [*(other for other in self._networks if other.model is not model), merged]
        return model

    def has(self, model: nn.Module) -> bool:
        """Whether a network has them in it, and will have the next ones."""
        return any(merged.model is model for merged in self._networks)

    def release(self, model: nn.Module) -> None:
        """Take them out of a network, to the bit, and leave it alone from now on."""
        for merged in [m for m in self._networks if m.model is model]:
            merged.clear()
            self._networks.remove(merged)

    def merging(self, name: str) -> Callable[[Tensor], Tensor] | None:
        """What adds them to one weight, in float32; None where none of them changes it.

        For networks that are never in memory as a whole: the numbers of `fill`.
        """
        module = name.removesuffix(".weight")
        found = [(file.lora[module], file.weight) for file in self.files if module in file.lora]
        if not found or module == name:
            return None

        def merged(tensor: Tensor) -> Tensor:
            total = tensor.float()
            for adapter, weight in found:
                total = total + weight * adapter.delta(tensor.shape).to(total.device)
            return total

        return merged


def read_loras(
    told: Mapping[str | Path, float], shapes: Mapping[str, torch.Size], aliases: Mapping[str, str], model: str
) -> tuple[LoraFile, ...]:
    """LoRA files for the network whose parameters have these shapes, in the order told.

    ``aliases`` are other names of its modules. Raises `BadRequest` for a file that is damaged, a model
    or a LoRA of another one (and says what it is), and for a weight that is no number.
    """
    modules = [n.removesuffix(".weight") for n, shape in shapes.items() if n.endswith(".weight") and len(shape) > 1]
    return tuple(_read(Path(path), weight, modules, shapes, aliases, model) for path, weight in told.items())


def _read(  # noqa: PLR0917 (each is one thing that the file must agree with)
    path: Path,
    weight: float,
    modules: list[str],
    shapes: Mapping[str, torch.Size],
    aliases: Mapping[str, str],
    model: str,
) -> LoraFile:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise BadRequest(f"the weight of the LoRA {path} is {weight!r}; expected a number")
    if abs(weight) > MOST:
        raise BadRequest(f"the weight of the LoRA {path} is {plain(weight)}; expected {plain(-MOST)} to {plain(MOST)}")
    source = Source(path)
    if not is_lora(source.header):
        raise BadRequest(f"{path} is no LoRA: it is {describe(source)}; a model goes in the model's place")
    lora = read_lora(path, modules, aliases)
    check_shapes(lora, shapes, f"{path.name} is {lora_kind(source.header)}, not of {model}: it")
    return LoraFile(path, float(weight), lora)
