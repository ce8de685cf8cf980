"""LoRA files that a user names: reading, checks against the model, merging and recipe entries."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kinema import registry
from kinema.bounds import first_names
from kinema.checkpoints import files
from kinema.checkpoints.lora_formats import (
    Alias,
    Differences,
    Merged,
    changes,
    check_shapes,
    is_lora,
    layers_of,
    merged,
    read_lora,
)
from kinema.checkpoints.lora_names import bundled
from kinema.checkpoints.peft import foreign_settings_note, saved_alphas
from kinema.checkpoints.signatures import describe, lora_kind
from kinema.checkpoints.source import Source
from kinema.checkpoints.stream import Stream
from kinema.schema import BadRequest, plain_number

MOST = 100.0
"""Largest absolute weight; typical weights are -2 to 2."""
MAX_EMBEDDINGS = 64 * 2**20
"""Limit on the bytes of the embeddings in a file; 75 vectors of SDXL have 600 kB."""


@dataclass(frozen=True, eq=False)
class LoraFile:
    """A LoRA in use: its file, its weight, and its differences by native module name.

    ``settings`` are the alphas that PEFT saved next to the file, if it did; ``notes`` what the user should know of the
    file; ``embeddings`` the tables of textual-inversion embeddings in it, by name, which the weight does not scale.
    Compares by identity: the file may have changed between two reads.
    """

    path: Path
    weight: float
    lora: Differences = field(repr=False)
    settings: str = field(default="", repr=False)
    notes: tuple[str, ...] = ()
    embeddings: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict, repr=False)

    @cached_property
    def hash(self) -> str:
        """`files.weight_hash`, or ``sha256-peft:`` of that and of the alphas next to the file."""
        weights = files.weight_hash(self.path)
        if not self.settings:
            return weights
        return f"sha256-peft:{hashlib.sha256(f'{weights} {self.settings}'.encode()).hexdigest()}"

    def to_recipe(self) -> dict[str, Any]:
        """Return its entry in a recipe."""
        return {"file": registry.recipe_name(self.path), "weight": self.weight, "hash": self.hash}


class Loras:
    """The LoRAs in use, the only part of an open system that may change (`kinema.system.System.use_loras`)."""

    def __init__(self) -> None:
        self.files: tuple[LoraFile, ...] = ()
        self.settled = True
        """Whether all networks have exactly these merged; False after an interrupted change."""
        self._networks: list[Merged] = []

    def use(self, files: tuple[LoraFile, ...]) -> None:
        """Merge these LoRAs, and no others, into every network filled so far."""
        self.settled = False
        for network in self._networks:
            network.set([(file.lora, file.weight) for file in files])
        self.files, self.settled = files, True

    def fill(self, model: nn.Module) -> nn.Module:
        """Merge the LoRAs into a network without any, and register it for later changes."""
        network = Merged(model)
        network.set([(file.lora, file.weight) for file in self.files])
        self._networks = [*(other for other in self._networks if other.model is not model), network]
        return model

    def has(self, model: nn.Module) -> bool:
        """Return whether a network is registered, and so has the LoRAs merged."""
        return any(network.model is model for network in self._networks)

    def release(self, model: nn.Module) -> None:
        """Remove the LoRAs from a network, bit for bit, and unregister it."""
        for network in [n for n in self._networks if n.model is model]:
            network.clear()
            self._networks.remove(network)

    def merging(self, name: str) -> Callable[[Tensor], Tensor] | None:
        """Return a function that merges the LoRAs into one weight, in float32; None if none of them changes it.

        For networks that are never completely in memory; gives the same values as `fill`.
        """
        loras = [(file.lora, file.weight) for file in self.files]
        return (lambda tensor: merged(name, tensor, loras)) if changes(name, loras) else None


def read_loras(
    weights: Mapping[str | Path, float], shapes: Mapping[str, torch.Size], aliases: Mapping[str, Alias], model: str
) -> tuple[LoraFile, ...]:
    """Read LoRA files, given with their weights, for the network whose parameters have these shapes.

    ``aliases`` maps other names of its modules. Raises `BadRequest` for a damaged file, a model or a LoRA of another
    model (naming it), and an invalid weight.
    """
    modules = layers_of(shapes)
    return tuple(_read(Path(path), weight, modules, shapes, aliases, model) for path, weight in weights.items())


def _read(  # noqa: PLR0917 (all that a file is checked against)
    path: Path,
    weight: float,
    modules: list[str],
    shapes: Mapping[str, torch.Size],
    aliases: Mapping[str, Alias],
    model: str,
) -> LoraFile:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise BadRequest(f"the weight of the LoRA {path} is {weight!r}; expected a number")
    if abs(weight) > MOST:
        raise BadRequest(
            f"the weight of the LoRA {path} is {plain_number(weight)}; expected {plain_number(-MOST)} to "
            f"{plain_number(MOST)}"
        )
    source = Source(path)
    if not is_lora(source.header):
        raise BadRequest(f"{path} is not a LoRA: it is {describe(source)}; expected a LoRA file")
    lora = read_lora(path, modules, aliases)
    check_shapes(lora, shapes, f"{path.name} is {lora_kind(source.header)}, not of {model}: it")
    note = foreign_settings_note(path, source.header)
    return LoraFile(path, float(weight), lora, saved_alphas(path), (note,) if note else (), _embeddings(source))


def _embeddings(source: Source) -> dict[str, dict[str, Tensor]]:
    """The tables of the embeddings in a LoRA's file. Raises BadRequest for tables that are too large or no floats."""
    names, where = bundled(source.header), source.path.name
    if "" in names:
        raise BadRequest(f"{where} has an embedding without a name; expected bundle_emb.NAME.KEY")
    entries = [source.header[name] for tables in names.values() for name in tables.values()]
    if (size := sum(math.prod(shape) * dtype.itemsize for shape, dtype in entries)) > MAX_EMBEDDINGS:
        raise BadRequest(f"{where} has embeddings of {size:,} bytes; expected at most {MAX_EMBEDDINGS:,}")
    if not all(dtype.is_floating_point for _, dtype in entries):
        raise BadRequest(f"{where} has embeddings ({first_names(list(names))}) that are not floating-point numbers")
    stored = Stream(source.path) if names else {}
    return {name: {key: stored[full] for key, full in tables.items()} for name, tables in names.items()}
