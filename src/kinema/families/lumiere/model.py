"""Lumiere's networks: the Space-Time U-Net, and the image model's codec and text encoder; what is new is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import nn

from kinema.conditioning.clip_text import ClipText
from kinema.families.lumiere.config import Config
from kinema.families.lumiere.space_time import SpaceTimeConv, TemporalAttention
from kinema.families.lumiere.unet import NEW, SpaceTimeUNet
from kinema.nn.ldm_unet import ResBlock, export_contiguous
from kinema.nn.sd_unet import Transformer
from kinema.vae.kl2d import Autoencoder
from kinema.vae.patches import Patches


class Lumiere(nn.Module):
    """``unet``, ``vae`` and ``text_encoder``, named as in a diffusers folder of the image model."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.unet = SpaceTimeUNet(config)
        self.vae: Patches | Autoencoder = (
            Patches(config.patch)
            if config.patch
            else Autoencoder(config.vae_channels, config.vae_layers, config.latent_channels)
        )
        self.text_encoder = ClipText(config.text)
        export_contiguous(self)
        self.requires_grad_(False)
        for name, parameter in self.unet.named_parameters():
            parameter.requires_grad_(is_new(name))


def is_new(name: str) -> bool:
    """Whether a parameter of the U-Net is one that the image model does not have."""
    return name.startswith(NEW)


def of_new_layer(name: str) -> bool:
    """`is_new`, for a name in the whole model."""
    return name.startswith("unet.") and is_new(name.removeprefix("unet."))


def blocks(model: nn.Module) -> Sequence[nn.Module]:
    """The repeated blocks of the U-Net."""
    kinds = ResBlock | Transformer | SpaceTimeConv | TemporalAttention
    return [module for module in cast(Lumiere, model).unet.modules() if isinstance(module, kinds)]
