"""SparseCtrl (Guo et al. 2023b, arXiv 2311.16933): a control network that propagates a few conditioning frames.

It copies the U-Net's encoder, with motion modules of one attention layer. Its noisy-latent input is zero, so the first
convolution contributes only its bias. Names are those of diffusers' ``SparseControlNetModel``.

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
from kinema.diffusion.windows import AttentionWindow
from kinema.families.animatediff.config import Config, skip_widths
from kinema.families.animatediff.control.ip_adapter import per_image
from kinema.families.animatediff.files import motion_file
from kinema.families.animatediff.files.motion_file import MotionLayout
from kinema.families.animatediff.motion.module import MotionControl
from kinema.families.animatediff.unet import MotionBlockInputs, down_level, mid_level
from kinema.nn.embeddings import sinusoidal
from kinema.nn.ldm_unet import TimestepEmbedding, silu_
from kinema.nn.sd_unet import Residuals, images, run_down, run_mid
from kinema.schema import BadRequest

HINT = (16, 32, 96, 256)
"""Channels of the convolutions from control image to latent size."""


class HintEncoder(nn.Module):
    """Encode pixels (and their mask) to a feature map of 1/8 the size: eight 3×3 convolutions."""

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
    """``forward(frames, mask, step, context) -> residuals`` for the U-Net's skips and middle block.

    ``frames`` B×C×T×H×W are scaled latents (``rgb``) or scribbles in pixels 0 to 1 (``scribble``), zero except at
    conditioning frames, where ``mask`` B×1×T×H×W is 1.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        # Always v3's shape, whichever motion module the image model has.
        v3: dict[str, Any] = {"motion": "v3", "positions": config.sparse_positions, "motion_mid": False}
        config = replace(config, stretch=None, adapters=(), **v3)
        channels, last = config.channels, len(config.channels) - 1
        self.first = channels[0]
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], 4 * channels[0])
        self.controlnet_cond_embedding = (
            zero(nn.Conv2d(config.latent_channels + 1, channels[0], 3, padding=1))
            if config.sparse == "rgb"
            else HintEncoder(channels[0])
        )
        self.down_blocks = nn.ModuleList(down_level(config, level, double=False) for level in range(last + 1))
        self.controlnet_down_blocks = nn.ModuleList(zero(nn.Conv2d(w, w, 1)) for w in skip_widths(config))
        self.mid_block = mid_level(config, motion=False)
        self.controlnet_mid_block = zero(nn.Conv2d(channels[-1], channels[-1], 1))

    def forward(
        self,
        frames_BCTHW: Tensor,
        mask_B1THW: Tensor,
        step_B: Tensor,
        context_RLC: Tensor,
        scale_T: Tensor | float = 1.0,
        windows: tuple[AttentionWindow, ...] = (),
    ) -> Residuals:
        """``scale`` of the residuals is a number or one per frame, [T]."""
        dtype = self.conv_in.weight.dtype
        emb_BE = self.time_embedding(sinusoidal(step_B, self.first).to(dtype))
        control = MotionControl(windows=windows)
        inputs = MotionBlockInputs(silu_(emb_BE), context_RLC, frames_BCTHW.shape[2], motion_control=control)
        hint = images(torch.cat([frames_BCTHW, mask_B1THW], dim=1).to(dtype))
        assert self.conv_in.bias is not None
        x = self.controlnet_cond_embedding(hint) + self.conv_in.bias[:, None, None]
        x, skips = run_down(self.down_blocks, x, inputs)
        x = run_mid(self.mid_block, x, inputs)
        scale = per_image(torch.as_tensor(scale_T).to(x).reshape(-1), len(x))
        out = [scale * conv(skip) for conv, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        return Residuals(out, scale * self.controlnet_mid_block(x))


def zero(conv: nn.Conv2d) -> nn.Conv2d:
    """Zero-initialise a layer."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


# ------------------------------------------------------------------------------------------ files


@dataclass(frozen=True)
class SparseFile:
    """A recognised SparseCtrl file."""

    kind: Literal["rgb", "scribble"]
    layout: MotionLayout
    channels: tuple[int, ...]
    context: int
    positions: int

    def into(self, config: Config) -> Config:
        """Add this SparseCtrl to the config of a model."""
        if (self.channels, self.context) != (config.channels, config.context):
            model, own = ("/".join(map(str, c)) for c in (config.channels, self.channels))
            raise BadRequest(f"this SparseCtrl is for an image model of {own} channels; the image model has {model}")
        if config.motion == "none":
            raise BadRequest(
                "SparseCtrl needs a motion module and this image model has none; give --add motion=FILE first"
            )
        if self.kind == "scribble" and config.stride != 8:
            raise BadRequest(wrong_stride(config))
        return replace(config, sparse=self.kind, sparse_positions=self.positions)


def wrong_stride(config: Config) -> str:
    """Message for scribbles on a model whose latents are not 1/8 of the frame size."""
    return f"the model's latents are 1/{config.stride} of the frame size; SparseCtrl for scribbles needs 1/8"


def recognise(header: Header) -> SparseFile | None:
    """Recognise a SparseCtrl file by keys and shapes; None for any other file."""
    if "controlnet_mid_block.weight" not in header:
        return None
    motion_header = {name: entry for name, entry in header.items() if ".motion_modules." in name}
    module = motion_file.recognise(motion_header) if motion_header else None
    if module is None:
        return None
    rgb = "controlnet_cond_embedding.weight" in header
    hint = "controlnet_cond_embedding.weight" if rgb else "controlnet_cond_embedding.conv_in.weight"
    to_k = re.compile(r"down_blocks\.\d+\.attentions\.0\.transformer_blocks\.0\.attn2\.to_k\.weight")
    contexts = {shape[1] for name, (shape, _) in header.items() if to_k.fullmatch(name)}
    if hint not in header or not contexts:
        raise BadRequest(f"this SparseCtrl lacks {hint}")
    kind: Literal["rgb", "scribble"] = "rgb" if rgb else "scribble"
    positions = module.positions or motion_file.DEFAULT_POSITIONS
    return SparseFile(kind, module.layout, module.channels, min(contexts), positions)


def convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a file's tensors to the names of `SparseCtrl`."""
    motion_tensors = {name: tensor for name, tensor in tensors.items() if ".motion_modules." in name}
    module = motion_file.recognise({name: (tuple(t.shape), t.dtype) for name, t in motion_tensors.items()})
    assert module is not None
    others = {name: tensor for name, tensor in tensors.items() if name not in motion_tensors}
    return others | motion_file.convert(module, motion_tensors, "this SparseCtrl")


def export(layout: MotionLayout, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert `SparseCtrl` tensors to a file layout."""
    motion_tensors = {name: tensor for name, tensor in tensors.items() if ".motion_modules." in name}
    others = {name: tensor for name, tensor in tensors.items() if name not in motion_tensors}
    return others | motion_file.export(layout, motion_tensors)
