"""AnimateDiff's networks, named as in a diffusers folder; each training stage trains one part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from torch import nn

from kinema.conditioning.clip_text import ClipText
from kinema.conditioning.clip_vision import ClipVision
from kinema.families.animatediff.config import Config, Stage
from kinema.families.animatediff.control.controlnet import ControlNet
from kinema.families.animatediff.control.sparse import SparseCtrl
from kinema.families.animatediff.kinds import kind_of
from kinema.families.animatediff.motion.module import MotionModule
from kinema.families.animatediff.unet import UNet
from kinema.nn.ldm_unet import ResBlock, export_contiguous
from kinema.nn.sd_unet import Transformer


class AnimateDiff(nn.Module):
    """U-Net, VAE, text encoder (two for SDXL), and optional SparseCtrl, ControlNets and image encoder."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.unet = UNet(config)
        self.vae = kind_of(config).codec(config)
        self.text_encoder = ClipText(config.text[0])
        self.text_encoder_2 = ClipText(config.text[1]) if len(config.text) > 1 else None
        self.sparse = SparseCtrl(config) if config.sparse else None
        self.controls = nn.ModuleList(ControlNet(config, size) for size in config.controls)
        self.image_encoder = ClipVision(**asdict(config.vision)) if config.vision else None
        kind_of(config).finish(self, config)
        export_contiguous(self)
        self.requires_grad_(False)
        for parameter in self.trained(config.trains):
            parameter.requires_grad_(True)

    def trained(self, stage: Stage) -> Iterator[nn.Parameter]:
        """Parameters that a training stage updates; the rest stay frozen."""
        if stage == "sparsectrl" and self.sparse is not None:
            yield from self.sparse.parameters()
        elif stage == "motion":
            for module in self.motion_modules:
                yield from module.parameters()
        elif stage in ("image", "style"):
            yield from kind_of(self.unet.config).image_parameters(self, stage)

    @property
    def motion_modules(self) -> list[MotionModule]:
        return [m for m in self.unet.modules() if isinstance(m, MotionModule)]

    @property
    def text_encoders(self) -> list[ClipText]:
        return [self.text_encoder] if self.text_encoder_2 is None else [self.text_encoder, self.text_encoder_2]


def blocks(model: nn.Module) -> Sequence[nn.Module]:
    """The repeated blocks of the U-Net."""
    network = model.unet if isinstance(model, AnimateDiff) else model
    return [m for m in network.modules() if isinstance(m, ResBlock | Transformer | MotionModule)]
