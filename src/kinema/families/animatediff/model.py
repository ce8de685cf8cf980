"""The networks of AnimateDiff under the names of a diffusers folder; only the motion modules are trained."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kinema.conditioning.clip_text import ClipText
from kinema.families.animatediff.config import Config
from kinema.families.animatediff.motion import MotionModule
from kinema.families.animatediff.sparse import SparseCtrl
from kinema.families.animatediff.unet import Transformer, UNet
from kinema.nn.ldm_unet import ResBlock
from kinema.vae.kl2d import Autoencoder


class AnimateDiff(nn.Module):
    """U-Net, codec, one text encoder, or two for SDXL, and SparseCtrl where there is one."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.unet = UNet(config)
        self.vae = Autoencoder(config.vae_channels, config.vae_layers, config.latent_channels)
        self.text_encoder = ClipText(config.text[0])
        self.text_encoder_2 = ClipText(config.text[1]) if len(config.text) > 1 else None
        self.sparse = SparseCtrl(config) if config.sparse else None
        self.register_state_dict_post_hook(_contiguous)
        self.requires_grad_(False)
        # The paper's claim is that motion is learnt once, beside an image model that stays as it is.
        trained: Sequence[nn.Module] = self.motion_modules or [self.unet]
        for module in trained:
            module.requires_grad_(True)

    @property
    def motion_modules(self) -> list[MotionModule]:
        return [m for m in self.unet.modules() if isinstance(m, MotionModule)]

    @property
    def text_encoders(self) -> list[ClipText]:
        return [self.text_encoder] if self.text_encoder_2 is None else [self.text_encoder, self.text_encoder_2]


def _contiguous(_module: nn.Module, state: dict[str, Tensor], _prefix: str, _told: object) -> None:
    """Weights leave in the order of files, also where the network holds them channels-last."""
    for name, tensor in state.items():
        if not tensor.is_contiguous():
            state[name] = tensor.detach().contiguous()


def blocks(model: nn.Module) -> Sequence[nn.Module]:
    """The repeated blocks of the U-Net."""
    inside = model.unet if isinstance(model, AnimateDiff) else model
    return [m for m in inside.modules() if isinstance(m, ResBlock | Transformer | MotionModule)]
