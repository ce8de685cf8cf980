"""What a family says of its files: which are its own, how their tensors become the network's, what can be added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from kinema.checkpoints.convert import Layouts
from kinema.checkpoints.lora_formats import Alias
from kinema.checkpoints.source import Source


@dataclass(frozen=True)
class FoundCheckpoint:
    """What a family sees in a foreign file or folder."""

    config: Any
    parts: tuple[str, ...] = ()
    """The parts of a pipeline's folder that the network is filled from; none for a file."""
    notes: tuple[str, ...] = ()
    """What was decided where weights and configs do not tell; said with every request."""
    beside: Mapping[str, Path] = field(default_factory=dict)
    """Files beside this one that the model needs, by slot; added unless the user adds others."""
    outside: bool = False
    """For an addition: whether the family reads its file itself, so that no tensor of it is part of the network."""


class Slots(Protocol):
    """What a family takes in addition to its model's own file: a motion module, a ControlNet."""

    names: tuple[str, ...]
    """Of its slots; one that takes several files has a name behind a point (``controlnet.depth``)."""

    def open(self, config: Any, slot: str, source: Source) -> FoundCheckpoint:
        """The config with this in it; BadRequest for what does not belong there, saying what it is."""

    def convert(self, config: Any, slot: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its tensors under the network's own names, over those of the model's file."""


class Checkpoints(Protocol):
    """What a family's files are, and how their tensors become the network's. A family inherits what it does not say."""

    def recognise(self, source: Source) -> FoundCheckpoint | None:  # noqa: ARG002
        """What a foreign file (`Source.header`) or folder (`Source.pipeline`) is, or None if it is not ours."""
        return None

    def convert(self, config: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its tensors under the network's own names; every key used or named in a BadRequest.

        Those of a pipeline's folder come with their part in front (``unet.conv_in.weight``).
        """

    def lora_aliases(self, config: Any) -> Mapping[str, Alias]:  # noqa: ARG002
        """Names of another layout's modules to ours or to parts of ours, for LoRA files that use them; ours are known
        without."""
        return {}

    @property
    def slots(self) -> Slots | None:
        """What can be added to a model when it is opened; None for nothing."""
        return None

    @property
    def layouts(self) -> Layouts | None:
        """The layouts that ``kinema convert`` writes; None for a family with only its own."""
        return None
