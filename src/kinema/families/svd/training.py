"""SVD's tuning options: training stages, temporal layers only, LoRA, pre-encoded clips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from kinema.checkpoints.lora_formats import Lora
from kinema.families.svd import recipe
from kinema.families.svd.config import Config
from kinema.families.svd.kinds import kind_of
from kinema.families.svd.model import SVD
from kinema.schema import BadRequest
from kinema.system import Tuning


class SVDTraining(Tuning):
    """See `kinema.system.Tuning`."""

    parts: Mapping[str, str] = {"temporal": r"^unet\..*(temporal_|time_mixer|time_pos_embed)"}
    """656,076,838 parameters of ``svd`` (including blends and frame positions), as published."""
    adapted = r"unet\..*\.(attn1\.to_(q|k|v|out\.0)|attn2\.to_(v|out\.0))"
    """Excludes queries and keys of cross-attention, which have no effect with a context of one token."""
    opens_alone = False

    def staged(self, config: Config, name: str) -> Config:
        return recipe.staged(config, name)

    def stage(self, config: Config) -> str:
        return config.stage

    def grown(self, model: nn.Module, config: Config, seed: int) -> nn.Module:  # noqa: ARG002
        """Return the model unchanged: no training stage adds layers."""
        return model

    def files(
        self,
        config: Config,  # noqa: ARG002
        tensors: Mapping[str, Tensor],  # noqa: ARG002
        low: Lora | None,  # noqa: ARG002
    ) -> Mapping[str, Mapping[str, Tensor]]:
        return {}

    def frozen(self, model: nn.Module) -> dict[str, Tensor]:
        network = cast(SVD, model)
        parts = {"vae": network.vae, "image_encoder": network.image_encoder}
        if kind_of(network.unet.config).custom_encoders:
            raise BadRequest(
                "this model's image encoder is trained with the U-Net, so clips cannot be encoded beforehand"
            )
        return {
            f"{name}.{key}": value
            for name, part in parts.items()
            for key, value in part.state_dict().items()
            if not key.startswith("decoder.")
        }

    def encode(self, model: nn.Module, video_BCTHW: Tensor) -> dict[str, Tensor]:
        return recipe.encode(cast(SVD, model), video_BCTHW)


TRAINING = SVDTraining()
