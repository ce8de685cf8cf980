"""Stages, parts, LoRAs and precomputed clips of Open-Sora: what `kinema.system.Tuning` asks of both lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from kinema.checkpoints.lora_formats import Lora
from kinema.families.opensora.config import Config as Config2
from kinema.families.opensora.kinds import kind_of
from kinema.families.opensora.model import OpenSora
from kinema.families.opensora.training import adapters, first, given, text
from kinema.families.opensora.training.stages import STAGES, stage_of
from kinema.families.opensora.v1.config import Config as Config1
from kinema.families.opensora.v1.model import OpenSora1
from kinema.schema import BadRequest
from kinema.system import OpenedModel, Tuning

Config = Config1 | Config2
TIMES = tuple(k / 11 for k in range(1, 11))
"""Times of the validation loss, those of the original's eval_loss.py."""


def times(config: Config) -> Sequence[float]:
    """Those of the published models; the pocket model's losses have none."""
    return TIMES if isinstance(config, Config1) or kind_of(config).timed else ()


_ATTENTION = r"(attn|attn_temp)\.(qkv|proj)|cross_attn\.(q_linear|kv_linear|proj)"
_OF_DOUBLE, _OF_SINGLE = r"(img|txt)_attn\.(q_proj|k_proj|v_proj|proj)", r"q_proj|k_proj|v_mlp|linear2"


class OpenSoraTuning(Tuning):
    """Stages are those of 1.x and of the pocket model; parts are by name where a version has them."""

    parts: Mapping[str, str] = {
        "temporal": r"^transformer\.(blocks\.\d+\.attn_temp|temporal_blocks)\.",
        "all-but-text": r"^transformer\.(?!y_embedder\.)",
        "given": r"^transformer\.(x_embedder_cond|x_embedder_cond_mask|cond_in)\.",
    }
    """``temporal``: 1.0's and 1.1's freeze="not_temporal", 1.2's and 1.3's only_train_temporal. ``all-but-text``:
    freeze_y_embedder, with which most stages of 1.2 and 1.3 were trained. ``given``: the layers for given frames."""
    adapted = (
        rf"transformer\.(blocks|spatial_blocks|temporal_blocks)\.\d+\.({_ATTENTION})"
        rf"|transformer\.double_blocks\.\d+\.({_OF_DOUBLE})|transformer\.single_blocks\.\d+\.({_OF_SINGLE})"
    )
    """Attention's layers; in 2.0's single blocks they are the MLP's, too."""
    opens_alone = False

    def staged(self, config: Config, name: str) -> Config:
        if not isinstance(config, Config1):
            stages = kind_of(config).stages
            if name in stages:
                return replace(config, stage=cast(Any, name))
            known = f"expected {' or '.join(stages)}" if stages else "leave it out"
            raise BadRequest(f"this opensora model has no training stage {name!r}; {known}")
        if stage_of(config.version, name) is None:
            known = ", ".join(STAGES[config.version])
            raise BadRequest(f"Open-Sora {config.version} has no training stage {name!r}; expected one of {known}")
        return replace(config, stage=name)

    def stage(self, config: Config) -> str:
        if isinstance(config, Config1):
            return config.stage or [*STAGES[config.version]][-1]
        return config.stage if kind_of(config).stages else ""

    def grown(self, model: nn.Module, config: Config, seed: int) -> nn.Module:  # noqa: ARG002
        """Return the model unchanged: no stage adds layers."""
        return model

    def files(
        self,
        config: Config,
        tensors: Mapping[str, Tensor],  # noqa: ARG002
        low: Lora | None,
    ) -> Mapping[str, Mapping[str, Tensor]]:
        return {} if low is None else adapters.files(config, low)

    def frozen(self, model: nn.Module) -> dict[str, Tensor]:
        network = cast(OpenSora | OpenSora1, model)
        if isinstance(network, OpenSora) and network.needs_pixels:
            raise BadRequest("training of the pocket model needs the pixels of clips; train on the clips themselves")
        vae = network.vae
        return {f"vae.{name}": x for name, x in vae.state_dict().items() if "decoder." not in name}

    def encode(self, model: nn.Module, video_BCTHW: Tensor) -> dict[str, Tensor]:
        if isinstance(model, OpenSora1):
            return first.encode(model, video_BCTHW)
        return given.encode(cast(OpenSora, model), video_BCTHW)

    def encode_captions(
        self,
        system: OpenedModel,
        captions: Sequence[str],
        fps: Sequence[float | None],
        motion: Sequence[float | None],
    ) -> Sequence[Mapping[str, Tensor]]:
        return text.beforehand(system, captions, fps, motion)


TUNING = OpenSoraTuning()
