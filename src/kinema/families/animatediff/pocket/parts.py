"""The parts that let the pocket model's image model train in minutes.

Its latent cells are squares of pixels (`kinema.vae.patches`). The network predicts the clean image rather than the
noise, which would need one channel per value of a cell (Li & He 2025, arXiv 2511.13720). An auxiliary reader predicts
objects and positions from its features. This makes it learn words early, including those of motion, which no single
image shows but a motion module needs.

Letters: N images, C channels, H W rows and columns, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.conditioning.clip_text import ClipText
from kinema.data.reading import OFFSET_CLASSES, READING_CLASSES
from kinema.families.animatediff.config import Config
from kinema.families.animatediff.kind import Network
from kinema.families.animatediff.unet import MotionLevel, UNet
from kinema.nn.ldm_unet import ResBlock
from kinema.nn.linear import Linear


class Reader(nn.Module):
    """Predicts the object at every position of the U-Net's lowest feature maps, and the offset of the clip's object.

    The maps are the outputs of the middle block and of the first decoder level.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            Linear(config.channels[-1], sum(READING_CLASSES) + sum(OFFSET_CLASSES)) for _ in range(2)
        )

    def forward(self, maps_NCHW: list[Tensor]) -> list[Tensor]:
        """Class logits N×HW×K for each of the two maps."""
        tokens = [x.permute(0, 2, 3, 1).flatten(1, 2) for x in maps_NCHW]
        return [head(F.layer_norm(x, x.shape[-1:])) for head, x in zip(self.heads, tokens, strict=True)]

    @contextmanager
    def watching(self, unet: UNet) -> Iterator[list[Tensor]]:
        """Record the two maps of each forward pass of the U-Net in this context."""
        recorded: list[Tensor] = []

        def keep(at: int, out: Tensor) -> None:
            recorded[at : at + 1] = [out]

        middle, decoder = unet.mid_block, cast(MotionLevel, unet.up_blocks[0])
        last = [layers[-1] for layers in (decoder.resnets, decoder.attentions, decoder.motion_modules) if len(layers)]
        # All of the last layers, as a single frame skips motion modules.
        watched = [(0, middle.resnets[-1]), *((1, layer) for layer in last)]
        handles = [layer.register_forward_hook(lambda _m, _a, out, at=at: keep(at, out)) for at, layer in watched]
        try:
            yield recorded
        finally:
            for handle in handles:
                handle.remove()


def reader_of(network: Network) -> Reader:
    """The reader of a pocket model."""
    return cast(Reader, network.reader)


def initialise(unet: UNet, text: ClipText) -> None:
    """Initialise residual blocks, transformers and output at zero, and the text encoder near the identity.

    With random initialisation, a small text encoder collapsed into one vector for all captions (docs/decisions/0002).
    """
    zero: list[nn.Module] = [m.conv2 for m in unet.modules() if isinstance(m, ResBlock)]
    zero += [m for name, m in unet.named_modules() if name.endswith("proj_out")]
    tower = text.text_model
    near_identity = [layer.self_attn["out_proj"] for layer in tower.encoder["layers"]]  # type: ignore[attr-defined]
    near_identity += [layer.mlp["fc2"] for layer in tower.encoder["layers"]]  # type: ignore[attr-defined]
    with torch.no_grad():
        for parameter in (p for layer in (*zero, unet.conv_out) for p in layer.parameters()):
            nn.init.zeros_(parameter)
        for layer in near_identity:
            layer.weight.mul_(0.02)
            layer.bias.zero_()
        tower.embeddings.position_embedding.weight.mul_(0.1)


def finest_prefixes(config: Config) -> tuple[str, ...]:
    """Name prefixes of the U-Net's finest layers: its ends, first encoder level and last decoder level."""
    return ("conv_", "down_blocks.0.", f"up_blocks.{len(config.channels) - 1}.")
