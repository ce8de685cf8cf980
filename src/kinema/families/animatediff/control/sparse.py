"""SparseCtrl (Guo et al. 2023b, arXiv 2311.16933): a control network that spreads what it is shown of some frames.

A copy of the U-Net's way down with motion modules of one attention. It sees no noisy latents: where they would
come in are zeros, of which the first convolution leaves its bias. Names are those of diffusers'
``SparseControlNetModel``.

Letters: B clips, T frames, N = B·T images, R rows of context, C channels, H W rows and columns of latents.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.checkpoints.files import Header
from kinema.diffusion.windows import View
from kinema.families.animatediff.config import Config, skip_widths
from kinema.families.animatediff.control.ip_adapter import per_image
from kinema.families.animatediff.files import motion_file
from kinema.families.animatediff.files.motion_file import MotionLayout
from kinema.families.animatediff.motion.module import Moving
from kinema.families.animatediff.unet import MotionBlockInputs, down_level, mid_level
from kinema.nn.embeddings import sinusoidal
from kinema.nn.ldm_unet import TimestepEmbedding, silu_
from kinema.nn.sd_unet import Residuals, images, run_down, run_mid
from kinema.schema import BadRequest

HINT = (16, 32, 96, 256)
"""Channels of the convolutions that bring a drawing to the size of latents."""


class Drawing(nn.Module):
    """Pixels (and their mask) to a map an eighth of their size: a 3×3 convolution, three times two more, and a last."""

    def __init__(self, out: int, channels: int = 3 + 1) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, HINT[0], 3, padding=1)
        pairs = zip(HINT, HINT[1:], strict=False)
        self.blocks = nn.ModuleList(
            conv
            for here, there in pairs
            for conv in (nn.Conv2d(here, here, 3, padding=1), nn.Conv2d(here, there, 3, padding=1, stride=2))
        )
        self.conv_out = zero(nn.Conv2d(HINT[-1], out, 3, padding=1))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = F.silu(self.conv_in(x_NCHW))
        for conv in self.blocks:
            x_NCHW = F.silu(conv(x_NCHW))
        return self.conv_out(x_NCHW)


class SparseCtrl(nn.Module):
    """``forward(given, mask, step, context) -> residuals`` for every skip of the U-Net and its middle.

    ``given`` B×C×T×H×W and ``mask`` B×1×T×H×W, 1 at frames that are given: scaled latents (``rgb``), or drawings in
    pixels 0..1 (``scribble``); zeros elsewhere.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        # It was trained with v3, whatever module moves the image model.
        told: dict[str, Any] = {"motion": "v3", "positions": config.sparse_positions, "motion_mid": False}
        config = replace(config, stretch=None, adapters=(), **told)
        channels, last = config.channels, len(config.channels) - 1
        self.first = channels[0]
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], 4 * channels[0])
        self.controlnet_cond_embedding = (
            zero(nn.Conv2d(config.latent_channels + 1, channels[0], 3, padding=1))
            if config.sparse == "rgb"
            else Drawing(channels[0])
        )
        self.down_blocks = nn.ModuleList(down_level(config, level, double=False) for level in range(last + 1))
        self.controlnet_down_blocks = nn.ModuleList(zero(nn.Conv2d(w, w, 1)) for w in skip_widths(config))
        self.mid_block = mid_level(config, motion=False)
        self.controlnet_mid_block = zero(nn.Conv2d(channels[-1], channels[-1], 1))

    def forward(
        self,
        given_BCTHW: Tensor,
        mask_B1THW: Tensor,
        step_B: Tensor,
        context_RLC: Tensor,
        scale_T: Tensor | float = 1.0,
        views: tuple[View, ...] = (),
    ) -> Residuals:
        """``scale``: how much of it is added, a number or one a frame, [T]."""
        dtype = self.conv_in.weight.dtype
        emb_BE = self.time_embedding(sinusoidal(step_B, self.first).to(dtype))
        told = MotionBlockInputs(silu_(emb_BE), context_RLC, given_BCTHW.shape[2], moving=Moving(views=views))
        shown = images(torch.cat([given_BCTHW, mask_B1THW], dim=1).to(dtype))
        assert self.conv_in.bias is not None
        x = self.controlnet_cond_embedding(shown) + self.conv_in.bias[:, None, None]
        x, skips = run_down(self.down_blocks, x, told)
        x = run_mid(self.mid_block, x, told)
        scale = per_image(torch.as_tensor(scale_T).to(x).reshape(-1), len(x))
        out = [scale * conv(skip) for conv, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        return Residuals(out, scale * self.controlnet_mid_block(x))


def zero(conv: nn.Conv2d) -> nn.Conv2d:
    """The layer with nothing in it, as every control network begins."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


# ------------------------------------------------------------------------------------------ files


@dataclass(frozen=True)
class SparseFile:
    """What a file of SparseCtrl holds."""

    kind: Literal["rgb", "scribble"]
    layout: MotionLayout
    channels: tuple[int, ...]
    context: int
    positions: int

    def into(self, config: Config) -> Config:
        if (self.channels, self.context) != (config.channels, config.context):
            ours, theirs = ("/".join(map(str, c)) for c in (config.channels, self.channels))
            raise BadRequest(f"this SparseCtrl is for an image model of {theirs} channels, and this one has {ours}")
        if config.motion == "none":
            raise BadRequest("SparseCtrl steers a motion module, and this image model has none: add motion=FILE first")
        if self.kind == "scribble" and config.stride != 8:
            told = f"an eighth as large as pixels, and this model's are a {config.stride}th"
            raise BadRequest(f"SparseCtrl takes drawings to maps {told}")
        return replace(config, sparse=self.kind, sparse_positions=self.positions)


def recognise(header: Header) -> SparseFile | None:
    """What SparseCtrl a file holds, told by keys and shapes; None for any other file."""
    if "controlnet_mid_block.weight" not in header:
        return None
    moving = {name: entry for name, entry in header.items() if ".motion_modules." in name}
    told = motion_file.recognise(moving) if moving else None
    if told is None:
        return None
    rgb = "controlnet_cond_embedding.weight" in header
    hint = "controlnet_cond_embedding.weight" if rgb else "controlnet_cond_embedding.conv_in.weight"
    to_k = re.compile(r"down_blocks\.\d+\.attentions\.0\.transformer_blocks\.0\.attn2\.to_k\.weight")
    contexts = {shape[1] for name, (shape, _) in header.items() if to_k.fullmatch(name)}
    if hint not in header or not contexts:
        raise BadRequest(f"this SparseCtrl lacks {hint}")
    kind: Literal["rgb", "scribble"] = "rgb" if rgb else "scribble"
    return SparseFile(kind, told.layout, told.channels, min(contexts), told.positions or motion_file.UNTOLD)


def convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors under the names of `SparseCtrl`."""
    moving = {name: tensor for name, tensor in tensors.items() if ".motion_modules." in name}
    told = motion_file.recognise({name: (tuple(t.shape), t.dtype) for name, t in moving.items()})
    assert told is not None
    still = {name: tensor for name, tensor in tensors.items() if name not in moving}
    return still | motion_file.convert(told, moving, "this SparseCtrl")


def export(layout: MotionLayout, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors as a file of this layout holds them."""
    moving = {name: tensor for name, tensor in tensors.items() if ".motion_modules." in name}
    still = {name: tensor for name, tensor in tensors.items() if name not in moving}
    return still | motion_file.export(layout, moving)
