"""How a family is trained: what a batch holds, the figures of a recipe, and what a family says of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from kinema.checkpoints.lora_formats import Lora
from kinema.diffusion.schedules import NoiseLevel

if TYPE_CHECKING:
    from kinema.data.playroom import Playroom
    from kinema.data.playroom.scene import Scene

Drawn = TypeVar("Drawn", Tensor, NoiseLevel, list[Tensor], list[int])


@dataclass(frozen=True)
class Batch:
    """Training data: ``video`` B×3×T×H×W in [-1, 1], one caption a clip, and what is given of it.

    ``images`` B×K×3×H×W are independent pictures for joint training (VDM §3.1), with captions
    ``image_captions[b][k]``; they never share temporal attention with the clip. ``scenes`` are the scene
    graphs of clips that were rendered (None for filmed ones): ground truth that a recipe may learn from.

    ``fps`` and ``motion`` [B] are the rate each clip plays at and how much it moves (`kinema.data.motion`), NaN
    where that is not known. ``encoded`` is what the family's frozen networks made of the clips beforehand, under its
    own names; ``video`` then holds their first frames only.
    """

    video: Tensor
    captions: Sequence[str]
    mask: Tensor
    images: Tensor | None = None
    image_captions: Sequence[Sequence[str]] = ()
    scenes: Sequence[Scene | None] = ()
    fps: Tensor | None = None
    motion: Tensor | None = None
    encoded: Mapping[str, Tensor] | None = None
    weights: Path | None = None
    """The file or folder of the model in training, beside which its vocabulary may lie."""
    encoders: Mapping[str, Path] = field(default_factory=dict)
    """Text encoders that the user added to it, by slot (`Weights.outside`)."""
    first: int = 0
    """Where these clips begin in the batch of the optimiser's step, of which they may be a part."""
    step_clips: int | None = None
    """Clips of that batch; None is these."""

    @property
    def count(self) -> int:
        """Clips of the optimiser's step: a loss draws noise for all of them, and takes its `own`."""
        return len(self.captions) if self.step_clips is None else self.step_clips

    def own(self, drawn: Drawn) -> Drawn:
        """What belongs to these clips of something drawn for the whole step, as many rows for each of `count`."""
        each = len(drawn) // self.count
        return drawn[self.first * each : (self.first + len(self.captions)) * each]

    def parts(self, number: int) -> Iterator[Batch]:
        """So many batches of equally many of these clips, one after the other."""
        size = len(self.captions) // number
        for first in range(0, len(self.captions), size):
            at = slice(first, first + size)
            of_clips: dict[str, Any] = {name: x[at] for name in _OF_CLIPS if (x := getattr(self, name)) is not None}
            if self.encoded is not None:
                of_clips["encoded"] = {name: x[at] for name, x in self.encoded.items()}
            yield replace(self, **of_clips, first=self.first + first, step_clips=self.count)


_OF_CLIPS = ("video", "captions", "mask", "images", "image_captions", "scenes", "fps", "motion")


@dataclass(frozen=True)
class TrainingSettings:
    """How a family's preset is trained: what `training.loop` needs besides the loss itself."""

    steps: int
    batch: int
    learning_rate: float
    optimiser: str = "adamw"
    weight_decay: float = 0.0
    warmup: int = 200
    cooldown: float = 0.3
    """Share of the steps, at the end, over which the learning rate falls linearly to zero."""
    ema: float = 0.999
    clip_norm: float = 1.0
    text_drop: float = 0.1
    canvas_mix: Mapping[str, float] = field(default_factory=lambda: {"nothing": 1.0})
    """Probability of each kind of canvas: nothing, first, ends, prefix, suffix, every, region."""
    images: int = 0
    """Independent pictures appended to every clip (VDM's K)."""
    playroom: Playroom | None = None
    """How clips of the playroom are rendered; None is the defaults."""
    frameskip: int = 1
    lora: Mapping[str, Any] = field(default_factory=dict)
    """Figures of a LoRA that differ, by name."""


class Tuning(Protocol):
    """How a family is trained in stages, in part or by a LoRA; regular expressions are of parameters' names."""

    parts: Mapping[str, str]
    """For ``--only``: a name to what the parameters of that part have in their names."""
    adapted: str
    """Whole names of the linear layers that a LoRA adapts."""

    def staged(self, config: Any, name: str) -> Any:
        """The config of a stage of the paper's training; BadRequest for one that the model has not."""

    def grown(self, model: nn.Module, config: Any, seed: int) -> nn.Module:
        """The network of a file in a stage that trains parts which the file lacks: those are made from the seed."""

    def files(self, config: Any, tensors: Mapping[str, Tensor], low: Lora | None) -> Mapping[str, Mapping[str, Tensor]]:
        """Further files of what was trained, in layouts that people have: name to tensors. ``low`` is a run's LoRA."""

    def frozen(self, model: nn.Module) -> Mapping[str, Tensor]:
        """The tensors that make what `encode` gives: clips encoded by others are clips of another model."""

    def encode(self, model: nn.Module, video_BCTHW: Tensor) -> dict[str, Tensor]:
        """What the frozen networks make of clips, under the names that the family's loss looks for."""


class Training(Protocol):
    """How a family is trained."""

    def recipe(self, config: Any) -> TrainingSettings: ...

    def loss(self, model: nn.Module, config: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        """The training loss of each item of the batch, ``[B]``, none of which may depend on the others.

        The batch may be a part of a step's: what is drawn is drawn for `Batch.count` clips, of which a part takes
        `Batch.own`.
        """

    @property
    def tuning(self) -> Tuning | None:
        """Stages, parts, LoRAs and clips encoded beforehand; None for a family that is only trained whole."""
        return None
