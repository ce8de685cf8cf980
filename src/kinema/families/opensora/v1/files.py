"""Files and training of Open-Sora 1.0 to 1.3: what `kinema.system.Family` asks."""

from __future__ import annotations

from collections.abc import Mapping

from kinema.checkpoints.convert import Layouts
from kinema.checkpoints.lora_formats import Alias
from kinema.families.opensora.training import first
from kinema.families.opensora.v1 import opening, text
from kinema.families.opensora.v1.config import Config
from kinema.system import Checkpoints, Slots, Training


class FirstLineCheckpoints(Checkpoints):
    """Which files are recognised, converted and required."""

    recognise = staticmethod(opening.open_source)
    convert = staticmethod(opening.convert)
    check_ready = staticmethod(text.check_encoder)

    def lora_aliases(self, config: Config) -> Mapping[str, Alias]:
        """Names as PEFT has them in the original, where the transformer is all of the model."""
        return opening.layers(config)

    @property
    def slots(self) -> Slots:
        return opening.SLOTS

    @property
    def layouts(self) -> Layouts:
        from kinema.families.opensora.v1.layouts import LAYOUTS

        return LAYOUTS


class FirstLineTraining(Training):
    """How 1.0 to 1.3 are trained."""

    loss = staticmethod(first.loss)
    settings = staticmethod(first.settings)
