"""The kinds of model in this family, which differ in autoencoder and image encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

from kinema.families.svd.config import Config
from kinema.families.svd.model import SVD
from kinema.families.svd.pocket.kind import Pocket
from kinema.families.svd.stages import FULL, STAGES, TrainingStage


class Kind(Protocol):
    """One kind of model."""

    @property
    def stages(self) -> Mapping[str, TrainingStage]:
        """The training stages by name."""

    @property
    def first(self) -> tuple[str, ...]:
        """Ways to hold a given first frame, best first (`kinema.system.Sampling.honours`)."""

    @property
    def custom_encoders(self) -> bool:
        """Whether the autoencoder and image encoder are Kinema's: trainable, and not supported by foreign layouts."""

    def build(self, config: Config) -> nn.Module:
        """Build the three networks, named as the folders of a diffusers checkpoint."""

    def settings(self, config: Config) -> Mapping[str, Any]:
        """Training settings that override those of the training stage, by name."""


class Published:
    """SD 2.1's autoencoder and CLIP, frozen."""

    stages: Mapping[str, TrainingStage] = STAGES
    first = ("native", "replacement", "reconstruction")
    custom_encoders = False

    def build(self, config: Config) -> nn.Module:
        return SVD(config)

    def settings(self, config: Config) -> Mapping[str, Any]:
        """Settings for small networks; none for full-size ones."""
        if config.channels[0] >= FULL:
            return {}
        return {"steps": 200, "batch": 4, "warmup": 10, "learning_rate": 1e-3, "ema": 0.99}


KINDS: dict[bool, Kind] = {False: Published(), True: Pocket()}
"""By `Config.pocket`."""


def kind_of(config: Config) -> Kind:
    return KINDS[config.pocket]
