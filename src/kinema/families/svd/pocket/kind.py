"""The pocket model's kind: see `kinema.families.svd.kinds.Kind`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from kinema.families.svd.config import Config
from kinema.families.svd.pocket.parts import PocketSVD
from kinema.families.svd.pocket.recipe import SETTINGS, STAGES
from kinema.families.svd.stages import TrainingStage


class Pocket:
    """A small autoencoder and image encoder; a first training stage trains the codec, a second the U-Net."""

    stages: Mapping[str, TrainingStage] = STAGES
    first = ("replacement", "native", "reconstruction")
    """Replacement first: after little training, native conditioning alone loses detail in the given frame, and then in
    later ones (docs/decisions/0004)."""
    custom_encoders = True

    def build(self, config: Config) -> nn.Module:
        return PocketSVD(config)

    def settings(self, config: Config) -> Mapping[str, Any]:  # noqa: ARG002
        return SETTINGS
