"""What `kinema.system.Family` asks of Open-Sora: two lines of models, distinguished by the type of their config.

2.0 is in ``v2`` and the modules next to it, 1.0 to 1.3 are in the folder ``v1``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kinema.canvas import Canvas
from kinema.checkpoints.convert import Conversion, Layouts
from kinema.checkpoints.lora_formats import Alias
from kinema.checkpoints.source import Source
from kinema.diffusion.guidance import Guidance
from kinema.diffusion.parameterise import Denoiser
from kinema.events import OnEvent
from kinema.families.opensora import config as second
from kinema.families.opensora import model as second_model
from kinema.families.opensora import v2
from kinema.families.opensora.kinds import kind_of
from kinema.families.opensora.pocket.presets import PRESETS as POCKET_PRESETS
from kinema.families.opensora.training.tuning import TUNING, times
from kinema.families.opensora.v1 import conditioning as first_condition
from kinema.families.opensora.v1 import config as first
from kinema.families.opensora.v1 import files as first_files
from kinema.families.opensora.v1 import model as first_model
from kinema.families.opensora.v1.sampling import FirstLineSampling
from kinema.grid import Lattice
from kinema.schema import Request
from kinema.system import (
    Batch,
    Checkpoints,
    Codec,
    Conditions,
    Defaults,
    FoundCheckpoint,
    OpenedModel,
    Process,
    Sampling,
    Slots,
    Training,
    TrainingSettings,
    Tuning,
)

Config = first.Config | second.Config


@dataclass(frozen=True)
class Line:
    """One line of models: its parts of the family, and its networks."""

    sampling: Sampling
    checkpoints: Checkpoints
    training: Training
    build: Callable[[Any], nn.Module]
    blocks: Callable[[nn.Module], Sequence[nn.Module]]
    to_json: Callable[[Any], dict[str, Any]]


FIRST = Line(
    FirstLineSampling(),
    first_files.FirstLineCheckpoints(),
    first_files.FirstLineTraining(),
    first_model.OpenSora1,
    first_model.blocks,
    first.to_json,
)
SECOND = Line(
    v2.OpenSoraSampling(),
    v2.OpenSoraCheckpoints(),
    v2.OpenSoraTraining(),
    lambda config: kind_of(config).build(config),
    second_model.blocks,
    second.to_json,
)
LINES = (SECOND, FIRST)


def line_of(config: Config) -> Line:
    """The line of a model."""
    return FIRST if isinstance(config, first.Config) else SECOND


class SamplingByLine(Sampling):
    """The sampling of a model's line."""

    def lattice(self, config: Config) -> Lattice:
        return line_of(config).sampling.lattice(config)

    def defaults(self, config: Config) -> Defaults:
        return line_of(config).sampling.defaults(config)

    def process(self, config: Config, request: Request) -> Process:
        return line_of(config).sampling.process(config, request)

    def codec(self, config: Config, model: nn.Module) -> Codec:
        return line_of(config).sampling.codec(config, model)

    def honours(self, config: Config, kind: str) -> tuple[str, ...]:
        return line_of(config).sampling.honours(config, kind)

    def check(self, config: Config, request: Request) -> None:
        line_of(config).sampling.check(config, request)

    def files(self, request: Request) -> tuple[str, ...]:
        return tuple(dict.fromkeys(file for line in LINES for file in line.sampling.files(request)))

    def encode_prompt(self, system: OpenedModel, request: Request, on_event: OnEvent) -> Any:
        return line_of(system.config).sampling.encode_prompt(system, request, on_event)

    def condition(  # noqa: PLR0917
        self, system: OpenedModel, text: Any, request: Request, canvas: Canvas, on_event: OnEvent
    ) -> Conditions:
        return line_of(system.config).sampling.condition(system, text, request, canvas, on_event)

    def guidance(self, config: Config, request: Request) -> Guidance | None:
        return line_of(config).sampling.guidance(config, request)

    def join(self, conditions: Sequence[Any]) -> Any | None:
        line = FIRST if isinstance(conditions[0], first_condition.Condition) else SECOND
        return line.sampling.join(conditions)

    def denoiser(self, system: OpenedModel, condition: Any, frames: Sequence[int] | None) -> Denoiser:
        return line_of(system.config).sampling.denoiser(system, condition, frames)


class SlotsByLine:
    """The additions of a model's line."""

    names: tuple[str, ...] = ("vae", "t5", "clip")

    def open(self, config: Config, slot: str, source: Source) -> FoundCheckpoint:
        return _slots(config).open(config, slot, source)

    def convert(self, config: Config, slot: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return _slots(config).convert(config, slot, tensors)


def _slots(config: Config) -> Slots:
    slots = line_of(config).checkpoints.slots
    assert slots is not None
    return slots


class LayoutsByLine:
    """The layouts of both lines; what a line opens knows which it is."""

    def __init__(self) -> None:
        self.names = tuple(dict.fromkeys(name for line in LINES for name in _layouts(line).names))

    def open(self, source: Path, variant: str | None) -> tuple[Line, Any] | None:
        each = ((line, _layouts(line).open(source, variant)) for line in LINES)
        return next(((line, opened) for line, opened in each if opened is not None), None)

    def plan(self, opened: tuple[Line, Any], layout: str, dtype: torch.dtype | None) -> Conversion:
        line, own = opened
        return _layouts(line).plan(own, layout, dtype)

    def reader(self, source: Path, variant: str | None) -> Callable[[str], Tensor] | None:
        each = (_layouts(line).reader(source, variant) for line in LINES)
        return next((read for read in each if read is not None), None)


def _layouts(line: Line) -> Layouts:
    layouts = line.checkpoints.layouts
    assert layouts is not None
    return layouts


class CheckpointsByLine(Checkpoints):
    """The files of both lines."""

    def recognise(self, source: Source) -> FoundCheckpoint | None:
        return next((found for line in LINES if (found := line.checkpoints.recognise(source)) is not None), None)

    def convert(self, config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return line_of(config).checkpoints.convert(config, tensors)

    def lora_aliases(self, config: Config) -> Mapping[str, Alias]:
        return line_of(config).checkpoints.lora_aliases(config)

    def check_ready(self, system: Any) -> None:
        line_of(system.config).checkpoints.check_ready(system)

    @property
    def slots(self) -> Slots:
        return SlotsByLine()

    @property
    def layouts(self) -> Layouts:
        return LayoutsByLine()


class TrainingByLine(Training):
    """The training of a model's line."""

    def settings(self, config: Config) -> TrainingSettings:
        return line_of(config).training.settings(config)

    def loss(self, model: nn.Module, config: Config, batch: Batch, generator: torch.Generator) -> Tensor:
        return line_of(config).training.loss(model, config, batch, generator)

    @property
    def tuning(self) -> Tuning:
        return TUNING

    def times(self, config: Config) -> Sequence[float]:
        return times(config)


class OpenSoraFamily:
    """Open-Sora 1.0 to 2.0 (Zheng et al. 2024, Peng et al. 2025): text and frames to video with transformers."""

    name = "opensora"
    sampling = SamplingByLine()
    checkpoints = CheckpointsByLine()
    training = TrainingByLine()

    @property
    def presets(self) -> Mapping[str, Config]:
        return {**second.PRESETS, **POCKET_PRESETS, **first.PRESETS}

    def build(self, config: Config) -> nn.Module:
        return line_of(config).build(config)

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        return (FIRST if isinstance(model, first_model.OpenSora1) else SECOND).blocks(model)

    def to_json(self, config: Config) -> dict[str, Any]:
        return line_of(config).to_json(config)

    def from_json(self, data: Mapping[str, Any]) -> Config:
        """A config of 1.x has the field ``stdit``. Raises BadRequest for invalid data."""
        return first.from_json(data) if "stdit" in data else second.from_json(data)


FAMILY = OpenSoraFamily()
