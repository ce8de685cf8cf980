"""A family's weight files: recognising them, converting their tensors, and add-ons in slots."""

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
    """A foreign weight file or folder that a family recognised."""

    config: Any
    parts: tuple[str, ...] = ()
    """Parts of a pipeline folder that hold the network's weights; empty for a file."""
    notes: tuple[str, ...] = ()
    """Assumptions made where weights and configs are ambiguous; reported with every request."""
    beside: Mapping[str, Path] = field(default_factory=dict)
    """Files next to this one that the model needs, by slot; loaded unless the user adds others."""
    outside: bool = False
    """For an add-on: whether the family reads its file itself, so that the network has no tensor of it."""


class Slots(Protocol):
    """The add-ons a family accepts: motion modules, ControlNets…"""

    names: tuple[str, ...]
    """Slot names; a slot that takes several files is addressed with a suffix (``controlnet.depth``)."""

    def open(self, config: Any, slot: str, source: Source) -> FoundCheckpoint:
        """Return the config extended by this add-on. Raises BadRequest if the file does not fit the slot."""

    def convert(self, config: Any, slot: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename an add-on's tensors to the network's names; they override those of the model's own file."""


class Checkpoints(Protocol):
    """The weight files a family reads and writes. Methods with a default are optional."""

    def recognise(self, source: Source) -> FoundCheckpoint | None:  # noqa: ARG002
        """Identify a foreign file (`Source.header`) or folder (`Source.pipeline`); None if it is not this family's."""
        return None

    def convert(self, config: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename a foreign file's tensors to the network's names. Raises BadRequest for unknown keys.

        Keys from a pipeline folder are prefixed with their part (``unet.conv_in.weight``).
        """

    def lora_aliases(self, config: Any) -> Mapping[str, Alias]:  # noqa: ARG002
        """Map module names of foreign layouts to native names or parts of them, for LoRA files; native names need no
        entry."""
        return {}

    def check_ready(self, system: Any) -> None:  # noqa: ARG002
        """Raise BadRequest for files besides the weights that a model (`OpenedModel`) needs and this machine lacks.

        Raise MissingFiles to name several. Called before weights are loaded; text encoders and vocabularies are such
        files.
        """
        return

    @property
    def slots(self) -> Slots | None:
        """The add-ons a model accepts when opened; None if there are none."""
        return None

    @property
    def layouts(self) -> Layouts | None:
        """The layouts ``kinema convert`` writes; None if the family has only the native one."""
        return None
