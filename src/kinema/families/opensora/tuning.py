"""Stages of Open-Sora's training (temporary; replaced by the training helper's)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from kinema.families.opensora.config import Config
from kinema.schema import BadRequest


class OpenSoraTuning:
    parts: Mapping[str, str] = {}
    adapted = r"(?!)"
    opens_alone = False

    def staged(self, config: Config, name: str) -> Config:
        if name not in ("codec", "flow") or config.vae != "pocket":
            raise BadRequest(f"no stage {name!r}")
        return replace(config, stage=cast(Any, name))

    def grown(self, model: nn.Module, config: Config, seed: int) -> nn.Module:  # noqa: ARG002
        return model

    def files(self, config: Config, tensors: Mapping[str, Tensor], low: Any) -> Mapping[str, Mapping[str, Tensor]]:  # noqa: ARG002
        return {}

    def frozen(self, model: nn.Module) -> dict[str, Tensor]:
        raise BadRequest("later")

    def encode(self, model: nn.Module, video_BCTHW: Tensor) -> dict[str, Tensor]:
        raise BadRequest("later")


TUNING = OpenSoraTuning()
