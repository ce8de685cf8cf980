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
from kinema.families.opensora.mmdit import MMDiT
from kinema.vae.causal3d import CausalAutoencoder


class OpenSora(nn.Module):
    """``transformer``, ``vae`` and ``words``, each a network of its own; T5 and CLIP are not part of it.

    ``vae``: a codec in place of the published one that the config names.
    """

    needs_pixels = False
    """Whether training needs the pixels of clips, so that latents are not precomputed."""

    def __init__(self, config: Config, vae: nn.Module | None = None) -> None:
        super().__init__()
        self.transformer = MMDiT(config.transformer)
        self.vae = codec(config) if vae is None else vae
        self.vae.requires_grad_(False)
        self.words = (
            PocketText(PocketTokenizer(config.words).size, config.transformer.text, length=config.text_length)
            if config.words
            else None
        )

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The repeated blocks of the transformer."""
        return [*self.transformer.double_blocks, *self.transformer.single_blocks]


def codec(config: Config) -> nn.Module:
    """A published codec, untrained."""
    if config.vae == "dc-ae":
        return VideoDCAE(config.dc_ae)
    sizes = config.hunyuan
    return CausalAutoencoder(sizes.channels, sizes.layers, sizes.latent, sizes.temporal)


def blocks(model: nn.Module) -> Sequence[nn.Module]:
    """The repeated blocks of the part that is sampled or trained."""
    return cast(OpenSora, model).blocks


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
