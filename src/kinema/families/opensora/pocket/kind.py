"""The pocket model's kind: see `kinema.families.opensora.kinds.Kind`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Generator, Tensor, nn

from kinema.families.opensora.config import Config
from kinema.families.opensora.pocket import recipe
from kinema.families.opensora.pocket.model import PocketOpenSora
from kinema.system import Batch, TrainingSettings


class Pocket:
    """A small causal codec that is trained first, then the transformer with its words."""

    stages: Sequence[str] = ("codec", "flow")
    timed = False
    takes_regions = True
    build = staticmethod(PocketOpenSora)

    def settings(self, config: Config) -> TrainingSettings:
        return recipe.CODEC if config.stage == "codec" else recipe.FLOW

    def loss(self, model: nn.Module, config: Config, batch: Batch, generator: Generator) -> Tensor:
        if config.stage == "codec":
            return recipe.codec_loss(model, batch, generator)
        return recipe.flow_loss(model, config, batch, generator)
