"""An Open-Sora 1.x model: its transformer, its codec and, for small models, the encoder of words that they learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from kinema.conditioning.pocket import PocketText, PocketTokenizer
from kinema.families.opensora.stdit import network
from kinema.families.opensora.stdit.network import STDiT
from kinema.families.opensora.v1.config import Config
from kinema.families.opensora.vae1x.codec import RunCodec, image_codec
from kinema.families.opensora.vae1x.vae12 import VideoVAE12
from kinema.families.opensora.vae1x.vae13 import VideoVAE13
from kinema.vae.kl2d import Autoencoder, ImageCodec


class OpenSora1(nn.Module):
    """``transformer``, ``vae`` and ``words``, each a network of its own; T5 is not part of it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.transformer = network.build(config.stdit)
        self.vae: Autoencoder | VideoVAE12 | VideoVAE13
        if config.by_image:
            sizes = config.vae12
            self.vae = Autoencoder(sizes.image_channels, sizes.image_layers, sizes.latent)
        else:
            self.vae = VideoVAE13(config.vae13) if config.version == "1.3" else VideoVAE12(config.vae12)
        self.vae.requires_grad_(False)
        vocabulary, length = PocketTokenizer(config.words).size, config.stdit.tokens
        self.words = PocketText(vocabulary, config.stdit.text, length=length) if config.words else None


def blocks(model: nn.Module) -> Sequence[nn.Module]:
    """The repeated blocks of the transformer."""
    return network.blocks(cast(OpenSora1, model).transformer)


def codec_of(model: nn.Module) -> RunCodec | ImageCodec:
    vae = cast(OpenSora1, model).vae
    return image_codec(vae) if isinstance(vae, Autoencoder) else RunCodec(vae)


def read_words(model: OpenSora1, config: Config, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """``(states B×M×F, mask B×M, true at words)`` of a small model's own words."""
    assert model.words is not None
    ids_BM = PocketTokenizer(config.words).encode(prompts, config.stdit.tokens)
    return model.words(ids_BM.to(model.words.position.device))


def transformer_of(model: nn.Module) -> STDiT:
    return cast(OpenSora1, model).transformer
