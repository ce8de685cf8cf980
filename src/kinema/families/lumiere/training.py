"""The trained part alone, for use with its image model: see `kinema.system.Tuning`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from kinema.checkpoints.lora_formats import Lora
from kinema.families.lumiere.config import Config
from kinema.families.lumiere.model import of_new_layer
from kinema.schema import BadRequest
from kinema.system import Tuning


class LumiereTraining(Tuning):
    """No stages; ``--only given`` trains the input of given pixels alone, as the paper's fine-tuning."""

    parts: Mapping[str, str] = {"given": r"^unet\.conv_given\."}
    adapted = r"(?!)"
    """No layer takes a LoRA: the image model's are frozen."""
    opens_alone = True

    def staged(self, config: Config, name: str) -> Config:  # noqa: ARG002
        raise BadRequest(f"lumiere has no training stage {name!r}; leave out stage")

    def grown(self, model: nn.Module, config: Config, seed: int) -> nn.Module:  # noqa: ARG002
        return model

    def files(
        self,
        config: Config,  # noqa: ARG002
        tensors: Mapping[str, Tensor],
        low: Lora | None,  # noqa: ARG002
    ) -> Mapping[str, Mapping[str, Tensor]]:
        """The new layers, for the slot ``temporal``, or as a model to which the image model is added."""
        if not any(name.startswith("unet.temporal.") for name in tensors):
            return {}  # with ``--only given``, most of them are not in training
        return {"temporal": {name: x for name, x in tensors.items() if of_new_layer(name)}}

    def frozen(self, model: nn.Module) -> Mapping[str, Tensor]:  # noqa: ARG002
        raise BadRequest("lumiere trains on pixels; there is nothing to encode beforehand")

    def encode(self, model: nn.Module, video_BCTHW: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        raise BadRequest("lumiere trains on pixels; there is nothing to encode beforehand")


TRAINING = LumiereTraining()
