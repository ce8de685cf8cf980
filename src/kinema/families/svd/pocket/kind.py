"""The pocket as a kind of model: see `kinema.families.svd.kinds.Kind`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from kinema.families.svd.config import Config
from kinema.families.svd.pocket.parts import PocketSVD
from kinema.families.svd.pocket.recipe import FIGURES, STAGES
from kinema.families.svd.stages import TrainingStage


class Pocket:
    """An autoencoder and an image encoder of our own: its codec is trained in a stage before the U-Net."""

    stages: Mapping[str, TrainingStage] = STAGES
    first = ("replacement", "native", "reconstruction")
    """It is shown the picture as SVD is, and held to it besides: trained so little, it loses detail in a frame that
    is known, and with it in those after it (docs/decisions/0004)."""
    own = True

    def build(self, config: Config) -> nn.Module:
        return PocketSVD(config)

    def figures(self, config: Config) -> Mapping[str, Any]:  # noqa: ARG002
        return FIGURES
