"""Files and training of Open-Sora 1.0 to 1.3: what `kinema.system.Family` asks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kinema.checkpoints.convert import Layouts
from kinema.families.opensora.v1 import opening, text
from kinema.families.opensora.v1.config import Config
from kinema.schema import BadRequest
from kinema.system import Batch, Checkpoints, Slots, Training, TrainingSettings


class FirstLineCheckpoints(Checkpoints):
    """Which files are recognised, converted and required."""

    recognise = staticmethod(opening.open_source)
    convert = staticmethod(opening.convert)
    check_ready = staticmethod(text.check_encoder)

    @property
    def slots(self) -> Slots:
        return opening.SLOTS

    @property
    def layouts(self) -> Layouts:
        from kinema.families.opensora.v1.layouts import LAYOUTS

        return LAYOUTS


class FirstLineTraining(Training):
    """None yet."""

    def settings(self, config: Config) -> TrainingSettings:
        raise BadRequest(f"Kinema does not train Open-Sora {config.version} yet; opensora/tiny and opensora/v2 can be")

    def loss(self, model: nn.Module, config: Config, batch: Batch, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        raise BadRequest(f"Kinema does not train Open-Sora {config.version} yet")
