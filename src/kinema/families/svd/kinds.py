"""In what models of this family differ beside their sizes: the autoencoder and image encoder beside the U-Net."""

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
        """The stages of its training."""

    @property
    def first(self) -> tuple[str, ...]:
        """The ways to hold a given first frame, best first (`kinema.system.Sampling.honours`)."""

    @property
    def own(self) -> bool:
        """Whether autoencoder and image encoder are trained too, and are not those that other layouts have."""

    def build(self, config: Config) -> nn.Module:
        """The three networks, under the names of a diffusers folder."""

    def figures(self, config: Config) -> Mapping[str, Any]:
        """Figures of its recipes that differ from those of the stage, by name."""


class Published:
    """SD 2.1's autoencoder and CLIP, frozen."""

    stages: Mapping[str, TrainingStage] = STAGES
    first = ("native", "replacement", "reconstruction")
    own = False

    def build(self, config: Config) -> nn.Module:
        return SVD(config)

    def figures(self, config: Config) -> Mapping[str, Any]:
        """Small ones for small networks."""
        if config.channels[0] >= FULL:
            return {}
        return {"steps": 200, "batch": 4, "warmup": 10, "learning_rate": 1e-3, "ema": 0.99}


KINDS: dict[bool, Kind] = {False: Published(), True: Pocket()}
"""By `Config.pocket`."""


def kind_of(config: Config) -> Kind:
    return KINDS[config.pocket]
