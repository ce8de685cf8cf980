"""LoRAs of the U-Net, the text encoders and the motion modules: names of the layouts people have, to ours.

kohya's and diffusers' own names of our modules are known without; here are those of ldm's U-Net, of text encoders as
kohya writes them, and of motion modules in the authors' layout (MotionLoRA, MotionDirector).
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
    """Another layout's name of a layer to ours."""
    return {**_image(config), **_motion(config)}


def _image(config: Config) -> dict[str, str]:
    """ldm's names (``input_blocks.1.1.…``), with which LoRAs of SDXL are written."""
    return {
        row.theirs.removesuffix(".weight"): f"unet.{row.ours[0].removesuffix('.weight')}"
        for row in unet_rows(config)
        if row.theirs.endswith(".weight") and len(row.shape) > 1
    }


def _motion(config: Config) -> dict[str, str]:
    """The authors' names (``down_blocks.0.motion_modules.0.temporal_transformer.…attention_blocks.0.to_q``)."""
    if config.motion == "none":
        return {}
    with torch.device("meta"):
        names = [name for name in UNet(config).state_dict() if ".motion_modules." in name]
    keys: KeyMap = motion_file.KEYS["official"]
    pairs = ((keys.rename_back(name), name) for name in names if name.endswith(".weight"))
    return {theirs.removesuffix(".weight"): f"unet.{ours.removesuffix('.weight')}" for theirs, ours in pairs if theirs}


def official(low: Lora) -> dict[str, Tensor]:
    """A MotionLoRA or a domain adapter as the authors' code saves it, which has no alpha: its scale is in ``up``."""
    made = {}
    for module, adapter in low.items():
        name = module.removeprefix("unet.")
        theirs = motion_file.KEYS["official"].rename_back(f"{name}.weight") if ".motion_modules." in name else None
        block, _, which = (theirs.removesuffix(".weight") if theirs else name).removesuffix(".0").rpartition(".")
        made[f"{block}.processor.{which}_lora.down.weight"] = adapter.down
        made[f"{block}.processor.{which}_lora.up.weight"] = adapter.scale * adapter.up
    return made
