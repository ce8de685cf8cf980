"""How shipped weights are trained from scratch: a sequence of `kinema train` runs that build on each other.

A family defines the sequence next to its training settings, `registry.SHIPPED` lists it, and
`kinema train --shipped NAME` runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any

from kinema.events import OnEvent

Grow = Callable[[Path, Path, OnEvent], None]
"""``grow(source, target, on_event)``: write a copy of a model's file extended by new layers."""


@dataclass(frozen=True)
class ShippedRun:
    """One training run. ``{base}`` in a string option stands for the file that the run ``base`` writes."""

    options: Mapping[str, Any]
    """Fields of `kinema.training.options.TrainOptions`; missing ones come from the family's training settings."""
    makes: str = "model.safetensors"
    """The file in the run's folder that ships or that later runs need."""
    grow: Grow | None = None
    """Applied to ``options["model"]`` before the run."""

    @property
    def needs(self) -> set[str]:
        """Names of the runs whose files the options refer to."""
        texts = [value for value in self.options.values() if isinstance(value, str)]
        return {name for text in texts for _, name, _, _ in Formatter().parse(text) if name}

    def filled(self, files: Mapping[str, Path]) -> dict[str, Any]:
        """The options with each reference replaced by that run's file."""
        return {k: v.format_map(files) if isinstance(v, str) else v for k, v in self.options.items()}


@dataclass(frozen=True)
class ShippedRuns:
    """A family's training runs, in order, and the run that writes each shipped file."""

    legs: Mapping[str, ShippedRun]
    files: Mapping[str, str]
    presets: Mapping[str, str] = field(default_factory=dict)
    """Presets that several runs train from scratch, such as "opensora/pocket", and the file that the runs write."""

    def towards(self, name: str) -> dict[str, ShippedRun]:
        """The runs that a shipped file needs, in order."""
        needed = {self.files[name]}
        for leg in reversed([*self.legs]):
            if leg in needed:
                needed |= self.legs[leg].needs
        return {name: leg for name, leg in self.legs.items() if name in needed}
