"""LoRA layer names of other layouts.

Generic code handles kohya's and diffusers' names; this module adds those of ldm's U-Net and of motion modules in the
authors' layout (MotionLoRA, MotionDirector).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kinema.checkpoints.keymap import KeyMap
from kinema.checkpoints.lora_formats import Lora
from kinema.checkpoints.stable_diffusion import unet_rows
from kinema.families.animatediff.config import Config
from kinema.families.animatediff.files import motion_file
from kinema.families.animatediff.unet import UNet


def aliases(config: Config) -> Mapping[str, str]:
    """Layer names of other layouts to Kinema's."""
    return {**_image(config), **_motion(config)}


def _image(config: Config) -> dict[str, str]:
    """ldm's names (``input_blocks.1.1.…``), used by LoRAs of SDXL."""
    return {
        row.foreign.removesuffix(".weight"): f"unet.{row.native[0].removesuffix('.weight')}"
        for row in unet_rows(config)
        if row.foreign.endswith(".weight")
    }


def _motion(config: Config) -> dict[str, str]:
    """The authors' names (``down_blocks.0.motion_modules.0.temporal_transformer.…attention_blocks.0.to_q``)."""
    if config.motion == "none":
        return {}
    with torch.device("meta"):
        names = [name for name in UNet(config).state_dict() if ".motion_modules." in name]
    keys: KeyMap = motion_file.KEYS["official"]
    pairs = ((keys.rename_back(name), name) for name in names if name.endswith(".weight"))
    return {
        foreign.removesuffix(".weight"): f"unet.{native.removesuffix('.weight')}"
        for foreign, native in pairs
        if foreign
    }


def official(low: Lora) -> dict[str, Tensor]:
    """Convert a MotionLoRA or domain adapter to the authors' layout, which has no alpha: ``up`` includes the scale."""
    tensors = {}
    for module, adapter in low.items():
        name = module.removeprefix("unet.")
        foreign = motion_file.KEYS["official"].rename_back(f"{name}.weight") if ".motion_modules." in name else None
        block, _, which = (foreign.removesuffix(".weight") if foreign else name).removesuffix(".0").rpartition(".")
        tensors[f"{block}.processor.{which}_lora.down.weight"] = adapter.down
        tensors[f"{block}.processor.{which}_lora.up.weight"] = adapter.scale * adapter.up
    return tensors
