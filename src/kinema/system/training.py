"""How a family is trained: batches, training settings, and the protocols a family implements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from kinema.checkpoints.lora_formats import Lora
from kinema.diffusion.schedules import NoiseLevel

if TYPE_CHECKING:
    from kinema.data.playroom import Playroom
    from kinema.data.playroom.scene import Scene
    from kinema.system.opened import OpenedModel

Kept = TypeVar("Kept")
Sampled = TypeVar("Sampled", Tensor, NoiseLevel, list[Tensor], list[int])


@dataclass(frozen=True)
class Batch:
    """Training data: ``video`` B×3×T×H×W in [-1, 1], one caption per clip, and the ``mask`` of its known region.

    ``images`` B×K×3×H×W are independent images for joint training (VDM §3.1), with captions ``image_captions[b][k]``;
    they never share temporal attention with the clip. ``scenes`` are the scene graphs of rendered clips (None for
    filmed ones), usable as ground truth.

    ``fps`` and ``motion`` [B] are each clip's frame rate and amount of motion (`kinema.data.motion`), NaN where
    unknown. ``encoded`` holds outputs of the family's frozen networks computed beforehand (`Tuning.encode`); ``video``
    then has only the first frames; ``mask`` has all.
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
    """File or folder of the model in training; its vocabulary may be next to it."""
    encoders: Mapping[str, Path] = field(default_factory=dict)
    """Text encoders that the user added to it, by slot (`Weights.outside`)."""
    first: int = 0
    """Index of the first clip within the optimiser step's batch, of which this batch may be a part."""
    step_clips: int | None = None
    """Number of clips in the whole step; None: this batch is all of it."""
    drops: bool = True
    """Whether a loss may drop conditions at random; validation keeps them."""
    time: float | None = None
    """Time in [0, 1] at which to compute the loss, one of `Training.times`; None: times are drawn."""
    kept: dict[str, Any] | None = None
    """What `once` has computed, for losses of the same batch at several times; None: nothing is kept."""
    bucket: str | None = None
    """The bucket (`kinema.data.buckets`) whose size all clips have; None: every batch has the same size."""

    @property
    def count(self) -> int:
        """Number of clips in the optimiser step. A loss samples noise for all of them and keeps its `own`."""
        return len(self.captions) if self.step_clips is None else self.step_clips

    def own(self, sampled: Sampled) -> Sampled:
        """Slice this batch's rows from values sampled for the whole step, with equally many rows per clip."""
        each = len(sampled) // self.count
        return sampled[self.first * each : (self.first + len(self.captions)) * each]

    def once(self, name: str, compute: Callable[[], Kept]) -> Kept:
        """``compute()``, which must not depend on ``time``; computed once if what it gives is ``kept``."""
        if self.kept is None:
            return compute()
        if name not in self.kept:
            self.kept[name] = compute()
        return cast(Kept, self.kept[name])

    def parts(self, number: int) -> Iterator[Batch]:
        """Split into ``number`` batches of equal size."""
        size = len(self.captions) // number
        for first in range(0, len(self.captions), size):
            at = slice(first, first + size)
            part: dict[str, Any] = {name: x[at] for name in _PER_CLIP if (x := getattr(self, name)) is not None}
            if self.encoded is not None:
                part["encoded"] = {name: x[at] for name, x in self.encoded.items()}
            yield replace(self, **part, first=self.first + first, step_clips=self.count)


_PER_CLIP = ("video", "captions", "mask", "images", "image_captions", "scenes", "fps", "motion")


@dataclass(frozen=True)
class TrainingSettings:
    """Hyperparameters of a preset's training: all that `training.loop` needs besides the loss."""

    steps: int
    batch: int
    learning_rate: float
    optimiser: str = "adamw"
    weight_decay: float = 0.0
    warmup: int = 200
    cooldown: float = 0.3
    """Fraction of the steps, at the end, over which the learning rate decays linearly to zero."""
    ema: float = 0.999
    clip_norm: float = 1.0
    text_drop: float = 0.1
    canvas_mix: Mapping[str, float] = field(default_factory=lambda: {"nothing": 1.0})
    """Probability of each kind of canvas: nothing, first, last, ends, prefix, suffix, every, region."""
    images: int = 0
    """Independent images appended to each clip (VDM's K)."""
    playroom: Playroom | None = None
    """How playroom clips are rendered; None: the defaults."""
    frameskip: int = 1
    lora: Mapping[str, Any] = field(default_factory=dict)
    """Settings, by name, that differ when training a LoRA."""


class Tuning(Protocol):
    """Training in stages, of some parameters only, or of a LoRA. Regular expressions match parameter names."""

    parts: Mapping[str, str]
    """For ``--only``: part name to a regular expression found in its parameters' names."""
    adapted: str
    """Regular expression that matches the full names of the linear layers a LoRA adapts."""
    opens_alone: bool
    """Whether `files` are models, with the network's names, whose other weights come with an add-on."""

    def staged(self, config: Any, name: str) -> Any:
        """Return the config of a training stage of the paper. Raises BadRequest if the model has no such stage."""

    def stage(self, config: Any) -> str:  # noqa: ARG002
        """Return the training stage of a config, by a name that `staged` takes; "" for a family without stages.

        Weight files keep the stage that they were trained in.
        """
        return ""

    def grown(self, model: nn.Module, config: Any, seed: int) -> nn.Module:
        """Extend a loaded network by the parts that the training stage adds, initialised from the seed."""

    def files(self, config: Any, tensors: Mapping[str, Tensor], low: Lora | None) -> Mapping[str, Mapping[str, Tensor]]:
        """Export the trained weights alone, in common foreign layouts if there are any: file name to tensors.

        ``low`` is the run's LoRA.
        """

    def frozen(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Return the weights that `encode` depends on; clips encoded with other weights are not reusable."""

    def encode(self, model: nn.Module, video_BCTHW: Tensor) -> dict[str, Tensor]:
        """Run the frozen networks on clips; the result is `Batch.encoded`, under names that the loss reads."""

    def encode_captions(
        self,
        system: OpenedModel,  # noqa: ARG002
        captions: Sequence[str],
        fps: Sequence[float | None],  # noqa: ARG002
        motion: Sequence[float | None],  # noqa: ARG002
    ) -> Sequence[Mapping[str, Tensor]]:
        """Run the frozen text encoders on captions of clips of this frame rate and motion: tensors for each, by name.

        They become part of `Batch.encoded`, as do those of the empty caption, under names that begin with ``empty_``.
        """
        return [{} for _ in captions]


class Training(Protocol):
    """How a family is trained."""

    def settings(self, config: Any) -> TrainingSettings:
        """Return the training settings of this config."""

    def loss(self, model: nn.Module, config: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the training loss of each batch item, [B]. Items must not influence each other.

        The batch may be a part of an optimiser step: sample noise and levels for `Batch.count` clips, then select with
        `Batch.own`.
        """

    @property
    def tuning(self) -> Tuning | None:
        """Support for training stages, parts, LoRAs and pre-encoded clips; None: only full training."""
        return None

    def times(self, config: Any) -> Sequence[float]:  # noqa: ARG002
        """Return times in [0, 1] at which validation reports the loss, which then reads `Batch.time`.

        Empty: no such report.
        """
        return ()
