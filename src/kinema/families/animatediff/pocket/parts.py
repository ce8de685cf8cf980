"""What the pocket has in place of Stable Diffusion's codec, and what makes its image model train in minutes.

It works on pixels: a latent cell is a square of them. The network predicts the clean picture and not the noise, which
would need as many channels as a cell has numbers (Li & He 2025, arXiv 2511.13720). What stands where is read of its
features beside the drawing; so the words are learnt first, and those of motion too, which no single picture shows: it
is there that a motion module finds them.

Letters: N images, C channels, H W rows and columns, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.conditioning.clip_text import ClipText
from kinema.data.reading import AWAY, READ
from kinema.families.animatediff.config import Config
from kinema.families.animatediff.kind import Network
from kinema.families.animatediff.unet import MotionLevel, UNet
from kinema.nn.ldm_unet import ResBlock


class Patches(nn.Module):
    """Squares of pixels as latents, and back: the place of `vae.kl2d.Autoencoder`, without a number to learn."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.stride = side

    def encode(self, image_NCHW: Tensor) -> Tensor:
        return F.pixel_unshuffle(image_NCHW, self.stride)

    def decode(self, z_NCHW: Tensor) -> Tensor:
        return F.pixel_shuffle(z_NCHW, self.stride)


class Reader(nn.Module):
    """Names what stands at every place of the U-Net's lowest maps, and how far off the clip's object is from there.

    The maps are those after its middle, and where they end upwards.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(config.channels[-1], sum(READ) + sum(AWAY)) for _ in range(2))

    def forward(self, maps_NCHW: list[Tensor]) -> list[Tensor]:
        """Classes N×HW×K of each of the two maps."""
        tokens = [x.permute(0, 2, 3, 1).flatten(1, 2) for x in maps_NCHW]
        return [head(F.layer_norm(x, x.shape[-1:])) for head, x in zip(self.heads, tokens, strict=True)]

    @contextmanager
    def watching(self, unet: UNet) -> Iterator[list[Tensor]]:
        """The two maps of each forward pass of the U-Net inside, as they come."""
        found: list[Tensor] = []

        def keep(at: int, out: Tensor) -> None:
            found[at : at + 1] = [out]

        middle, above = unet.mid_block, cast(MotionLevel, unet.up_blocks[0])
        last = [layers[-1] for layers in (above.resnets, above.attentions, above.motion_modules) if len(layers)]
        watched = [(0, middle.resnets[-1]), *((1, layer) for layer in last)]  # a single frame leaves motion modules out
        handles = [layer.register_forward_hook(lambda _m, _a, out, at=at: keep(at, out)) for at, layer in watched]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()


def reader_of(network: Network) -> Reader:
    """The reader of a pocket's network."""
    return cast(Reader, network.reader)


def few_groups(networks: Iterable[nn.Module], groups: int) -> None:
    """Have every group norm normalise this many groups of its channels."""
    for module in (m for network in networks for m in network.modules()):
        if isinstance(module, nn.GroupNorm):
            module.num_groups = groups


def begin(unet: UNet, text: ClipText) -> None:
    """Residual blocks, transformers and output begin at zero, words near what they are.

    Trained from random layers, a small text encoder collapsed into one vector for all captions (docs/decisions/0002).
    """
    zero: list[nn.Module] = [m.conv2 for m in unet.modules() if isinstance(m, ResBlock)]
    zero += [m for name, m in unet.named_modules() if name.endswith("proj_out")]
    tower = text.text_model
    near = [layer.self_attn["out_proj"] for layer in tower.encoder["layers"]]  # type: ignore[attr-defined]
    near += [layer.mlp["fc2"] for layer in tower.encoder["layers"]]  # type: ignore[attr-defined]
    with torch.no_grad():
        for parameter in (p for layer in (*zero, unet.conv_out) for p in layer.parameters()):
            nn.init.zeros_(parameter)
        for layer in near:
            layer.weight.mul_(0.02)
            layer.bias.zero_()
        tower.embeddings.position_embedding.weight.mul_(0.1)


def fine(config: Config) -> tuple[str, ...]:
    """What names of the U-Net's finest layers begin with: its ends, its first level down and its last level up."""
    return ("conv_", "down_blocks.0.", f"up_blocks.{len(config.channels) - 1}.")
