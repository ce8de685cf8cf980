"""The pocket model's networks: those of Open-Sora 2.0 with a codec of its own, and a reader that training needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from kinema.families.opensora.config import Config
from kinema.families.opensora.mmdit import MMDiT, Modulation
from kinema.families.opensora.model import OpenSora
from kinema.families.opensora.pocket.codec import PocketCodec
from kinema.families.opensora.pocket.reader import Reader


class PocketOpenSora(OpenSora):
    """Stage ``codec`` trains the codec, stage ``flow`` all else."""

    needs_pixels = True

    def __init__(self, config: Config) -> None:
        super().__init__(config, PocketCodec(config.pocket))
        self.reader, self.stage = Reader(config.transformer.width), config.stage
        start_as_identity(self.transformer)
        self.requires_grad_(config.stage == "flow")
        self.vae.requires_grad_(config.stage == "codec")

    @property
    def codec(self) -> PocketCodec:
        return cast(PocketCodec, self.vae)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The repeated blocks of the part in training."""
        return self.codec.blocks if self.stage == "codec" else super().blocks


def start_as_identity(transformer: MMDiT) -> None:
    """Zero the modulations and the output, so that at first blocks change nothing (adaLN-Zero, Peebles & Xie 2023)."""
    layers = [module.lin for module in transformer.modules() if isinstance(module, Modulation)]
    for layer in (*layers, transformer.final_layer.linear, transformer.final_layer.adaLN_modulation[1]):
        nn.init.zeros_(cast(Tensor, layer.weight))
        nn.init.zeros_(cast(Tensor, layer.bias))
