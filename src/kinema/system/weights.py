"""Where a model's weights come from: files, folders, add-ons in slots, or a seed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch

from kinema import registry
from kinema.checkpoints.source import Source

NARROW = torch.float8_e4m3fn


@dataclass(frozen=True)
class AddOn:
    """A file or folder in one of a model's slots."""

    slot: str
    source: Source
    parts: tuple[str, ...] = ()
    hub: str = ""
    """Its hub id, if it comes from the hub."""
    outside: bool = False
    """Whether the family reads it itself, so that it is not part of the network (a text encoder)."""

    def to_recipe(self) -> dict[str, Any]:
        """The add-on's entry in a recipe."""
        return {"slot": self.slot, "file": self.hub or registry.recipe_name(self.source.path), "hash": self.hash}

    @cached_property
    def hash(self) -> str:
        return self.source.hash(self.parts)


@dataclass(frozen=True)
class Weights:
    """Where a model's weights come from: a file or folder, or a seed for an untrained model."""

    path: Path | None = None
    seed: int = 0
    own: bool = True
    """Whether the file has kinema's native key names (as ``kinema train`` writes) rather than a foreign layout."""
    variant: str | None = None
    """Variant of a folder's files ("fp16"); None: those without a variant, or the only ones."""
    parts: tuple[str, ...] = ()
    """The parts of a pipeline folder to read."""
    model: str | None = None
    """The published model named by the user, where the weights are ambiguous."""
    added: tuple[AddOn, ...] = ()

    @property
    def source(self) -> Source:
        if self.path is None:
            raise RuntimeError("an untrained model has no weight file")
        return Source(self.path, self.variant, self.model)

    @property
    def untrained(self) -> bool:
        """Whether there are no weights but those that the seed gives."""
        return self.path is None and not self.added

    @property
    def place(self) -> Path | None:
        """The file or folder next to which a vocabulary may be: an added image model's, else the model's own."""
        added = {each.slot: each.source.path for each in reversed(self.added) if not each.outside}
        return added.get("image") or self.path or next(reversed(added.values()), None)

    @property
    def outside(self) -> dict[str, Path]:
        """Files by slot that the family reads itself."""
        return {each.slot: each.source.path for each in self.added if each.outside}

    @cached_property
    def stored(self) -> torch.dtype | None:
        """The precision of most values in the model's own file, read from headers only; None without a file.

        `NARROW` stands for quantised and scaled values.
        """
        if self.path is None:
            return None
        header = self.source.headers(self.parts) if self.parts else self.source.header
        counted: Counter[torch.dtype] = Counter()
        narrow = self.source.narrow(self.parts)
        for name, (shape, dtype) in header.items():
            counted[NARROW if name in narrow else dtype] += prod(shape) if dtype.is_floating_point else 0
        return max(counted, key=counted.__getitem__, default=None)

    @cached_property
    def hash(self) -> str:
        """Identifies exactly these weights; reads all of their files."""
        own = f"seed:{self.seed}" if self.path is None else self.source.hash(self.parts)
        return " ".join([own, *(f"{each.slot}={each.hash}" for each in self.added)])

    def check_there(self) -> None:
        """Raise BadRequest if files have disappeared since the model was opened."""
        if self.path is not None:
            self.source.files(self.parts)
        for each in self.added:
            each.source.files(each.parts)
