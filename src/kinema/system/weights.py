"""Where a model's numbers come from: files, folders, additions in slots, or a seed."""

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


@dataclass(frozen=True)
class AddOn:
    """A file or folder in one slot of a model."""

    slot: str
    source: Source
    parts: tuple[str, ...] = ()
    hub: str = ""
    """Its name on the hub, where it comes from there."""
    outside: bool = False
    """Whether the family reads it itself, so that it is not part of the network (a text encoder)."""

    def told(self) -> dict[str, Any]:
        """What the recipe says of it."""
        return {"slot": self.slot, "file": self.hub or registry.called(self.source.path), "hash": self.hash}

    @cached_property
    def hash(self) -> str:
        return self.source.hash(self.parts)


@dataclass(frozen=True)
class Weights:
    """Where a model's numbers come from: a file or folder, or a seed for an untrained model."""

    path: Path | None = None
    seed: int = 0
    own: bool = True
    """Whether the file uses our own names (written by ``kinema train``) or a foreign layout."""
    variant: str | None = None
    """Which of a folder's files ("fp16"); None takes the plain ones, or the only ones."""
    parts: tuple[str, ...] = ()
    """Of a pipeline's folder, the parts that are read."""
    model: str | None = None
    """The published model that the user says it is, where weights do not tell."""
    added: tuple[AddOn, ...] = ()

    @property
    def source(self) -> Source:
        if self.path is None:
            raise RuntimeError("an untrained model has no file")
        return Source(self.path, self.variant, self.model)

    @property
    def outside(self) -> dict[str, Path]:
        """Files by slot that the family reads itself."""
        return {each.slot: each.source.path for each in self.added if each.outside}

    @cached_property
    def stored(self) -> torch.dtype | None:
        """The precision that most numbers of the model's own file have, from headers alone; None without a file."""
        if self.path is None:
            return None
        header = self.source.headers(self.parts) if self.parts else self.source.header
        counted: Counter[torch.dtype] = Counter()
        for shape, dtype in header.values():
            counted[dtype] += prod(shape) if dtype.is_floating_point else 0
        return max(counted, key=counted.__getitem__, default=None)

    @cached_property
    def hash(self) -> str:
        """A name for exactly these weights; all of their files are read."""
        own = f"seed:{self.seed}" if self.path is None else self.source.hash(self.parts)
        return " ".join([own, *(f"{each.slot}={each.hash}" for each in self.added)])

    def check_there(self) -> None:
        """Raises BadRequest where files are gone since the model was opened."""
        if self.path is not None:
            self.source.files(self.parts)
        for each in self.added:
            each.source.files(each.parts)
