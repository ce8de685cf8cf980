"""The kinds of model in the line of 2.0, which differ in codec and training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Generator, Tensor, nn

from kinema.families.opensora import recipe
from kinema.families.opensora.config import Config
from kinema.families.opensora.model import OpenSora
from kinema.families.opensora.pocket.kind import Pocket
from kinema.system import Batch, TrainingSettings


class Kind(Protocol):
    """One kind of model."""

    stages: Sequence[str]
    """Names of its training stages; none: there is one."""
    timed: bool
    """Whether its loss can be computed at a given time."""
    takes_regions: bool
    """Whether the network was trained with regions of frames that are given."""

    def build(self, config: Config) -> OpenSora:
        """Build the networks, untrained."""

    def settings(self, config: Config) -> TrainingSettings:
        """Training settings of the config's stage."""

    def loss(self, model: nn.Module, config: Config, batch: Batch, generator: Generator) -> Tensor:
        """The loss of the config's stage, [B]."""


class Published:
    """HunyuanVideo's codec or the Video DC-AE, frozen."""

    stages: Sequence[str] = ()
    timed = True
    takes_regions = False
    build = staticmethod(OpenSora)
    settings = staticmethod(recipe.settings)
    loss = staticmethod(recipe.loss)


PUBLISHED, POCKET = Published(), Pocket()


def kind_of(config: Config) -> Kind:
    return POCKET if config.vae == "pocket" else PUBLISHED
