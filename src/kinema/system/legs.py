"""How weights that ship are trained from scratch: runs of `kinema train`, each from what earlier ones made.

A family tells it beside its recipe, `registry.SHIPPED` names it, and `kinema train --shipped NAME` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from kinema.events import OnEvent

Grow = Callable[[Path, Path, OnEvent], None]
"""Makes of one model's file another, with layers that the first has not."""


@dataclass(frozen=True)
class Leg:
    """One run. In the text of an option, ``{base}`` is the file that the leg ``base`` makes."""

    options: Mapping[str, Any]
    """Of `kinema.training.options.TrainOptions`, by name; what is not there is the recipe's."""
    makes: str = "model.safetensors"
    """The file in the run's folder that ships, or that later legs need."""
    grow: Grow | None = None
    """What is done to ``options["model"]`` before the run."""

    @property
    def needs(self) -> set[str]:
        """The legs whose files its options name."""
        told = [value for value in self.options.values() if isinstance(value, str)]
        return {name for text in told for _, name, _, _ in Formatter().parse(text) if name}

    def filled(self, files: Mapping[str, Path]) -> dict[str, Any]:
        """Its options, with the files of other legs in them."""
        return {k: v.format_map(files) if isinstance(v, str) else v for k, v in self.options.items()}


@dataclass(frozen=True)
class Shipped:
    """The legs of a family, in order, and which leg makes each file that ships."""

    legs: Mapping[str, Leg]
    files: Mapping[str, str]

    def towards(self, name: str) -> dict[str, Leg]:
        """The legs that a file needs, in order."""
        wanted = {self.files[name]}
        for leg in reversed([*self.legs]):
            if leg in wanted:
                wanted |= self.legs[leg].needs
        return {name: leg for name, leg in self.legs.items() if name in wanted}
