"""An Open-Sora 2.0 model: its transformer, its codec and, for small models, the encoder of words that they learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from kinema import processor
from kinema.conditioning.pocket import PocketText, PocketTokenizer
from kinema.diffusion.schedules import NoiseLevel
from kinema.families.opensora.config import Config
from kinema.families.opensora.dc_ae import VideoDCAE
from kinema.families.opensora.mmdit import MMDiT, Modulation
from kinema.families.opensora.pocket.codec import PocketCodec
from kinema.families.opensora.pocket.reader import Reader
from kinema.vae.causal3d import CausalAutoencoder


class OpenSora(nn.Module):
    """``transformer``, ``vae`` and ``words``, each a network of its own; T5 and CLIP are not part of it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        hunyuan, self.stage = config.hunyuan, config.stage
        self.transformer = MMDiT(config.transformer)
        self.vae: CausalAutoencoder | VideoDCAE | PocketCodec
        self.reader: Reader | None = None
        if config.vae == "dc-ae":
            self.vae = VideoDCAE(config.dc_ae)
        elif config.vae == "pocket":
            self.vae, self.reader = PocketCodec(config.pocket), Reader(config.transformer.width)
            start_as_identity(self.transformer)
        else:
            self.vae = CausalAutoencoder(hunyuan.channels, hunyuan.layers, hunyuan.latent, hunyuan.temporal)
        self.words = (
            PocketText(PocketTokenizer(config.words).size, config.transformer.text, length=config.text_length)
            if config.words
            else None
        )
        self.requires_grad_(config.stage == "flow")
        self.vae.requires_grad_(config.stage == "codec")


def start_as_identity(transformer: MMDiT) -> None:
    """Zero the modulations and the output, so that at first blocks change nothing (adaLN-Zero, Peebles & Xie 2023)."""
    layers = [module.lin for module in transformer.modules() if isinstance(module, Modulation)]
    for layer in (*layers, transformer.final_layer.linear, transformer.final_layer.adaLN_modulation[1]):
        nn.init.zeros_(cast(Tensor, layer.weight))
        nn.init.zeros_(cast(Tensor, layer.bias))


def blocks(model: nn.Module) -> Sequence[nn.Module]:
    """The repeated blocks of the transformer, or of a codec in training."""
    network = cast(OpenSora, model)
    if isinstance(network.vae, PocketCodec) and network.stage == "codec":
        return network.vae.blocks
    transformer = network.transformer
    return [*transformer.double_blocks, *transformer.single_blocks]


def read_words(model: OpenSora, config: Config, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """``(states B×M×F, pooled B×F)`` of a small model's own words: pooled is their mean."""
    assert model.words is not None
    ids_BM = PocketTokenizer(config.words).encode(prompts, config.text_length)
    states_BMF, keep_BM = model.words(ids_BM.to(model.words.position.device))
    kept = keep_BM[..., None].to(states_BMF)
    return states_BMF, (states_BMF * kept).sum(1) / kept.sum(1)


def run(  # noqa: PLR0917
    transformer: MMDiT, z_BCTHW: Tensor, level: NoiseLevel, text_BMF: Tensor, pooled_BF: Tensor, given: Tensor | None
) -> Tensor:
    """The raw velocity at this noise level, whose sigma is the flow's time, in the precision of z."""
    dtype = transformer.img_in.weight.dtype
    time_B = processor.to_device(level.sigma, z_BCTHW.device).float()
    shown = None if given is None else given.to(dtype)
    return transformer(z_BCTHW.to(dtype), time_B, text_BMF.to(dtype), pooled_BF.to(dtype), shown).to(z_BCTHW.dtype)
