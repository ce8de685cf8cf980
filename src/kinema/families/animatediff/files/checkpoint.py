"""Image models, motion modules, what steers beside the prompt and LoRAs, from layout to layout and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any, Literal
from typing import cast as as_cast

import torch
from torch import Tensor

from kinema.checkpoints.convert import Conversion, TargetFile, cast
from kinema.checkpoints.source import Source
from kinema.checkpoints.stable_diffusion import heads_of
from kinema.families.animatediff.control import sparse
from kinema.families.animatediff.control.sparse import SparseFile
from kinema.families.animatediff.files import controlnet_file, image_files, ip_adapter_file, lora_files, motion_file
from kinema.families.animatediff.files.controlnet_file import ControlFile
from kinema.families.animatediff.files.image_files import OpenedImage
from kinema.families.animatediff.files.ip_adapter_file import AdapterFile
from kinema.families.animatediff.files.lora_files import OpenedLora
from kinema.families.animatediff.files.motion_file import HEADS, UNTOLD, MotionFile, MotionLayout
from kinema.schema import BadRequest

WEIGHTS = "diffusion_pytorch_model"


@dataclass(frozen=True)
class Opened:
    """A file or folder: what it holds, and its tensors under our names, memory-mapped."""

    told: MotionFile | SparseFile | ControlFile | AdapterFile
    tensors: Mapping[str, Tensor]


class Layouts:
    """What `kinema.checkpoints.convert` asks of a family."""

    names: tuple[str, ...] = ("official", "diffusers", "hotshot", "kohya")

    def open(self, source: Path, variant: str | None) -> Opened | OpenedImage | OpenedLora | None:
        seen = Source(source, variant)
        return image_files.open_image(seen) or lora_files.open_lora(seen) or _open(seen)

    def plan(self, opened: Opened | OpenedImage | OpenedLora, layout: str, dtype: torch.dtype | None) -> Conversion:
        """One file of the authors' layout, or a folder that diffusers opens (of an IP-Adapter one file in any case)."""
        if isinstance(opened, OpenedImage):
            return image_files.plan(opened, layout, dtype)
        if isinstance(opened, OpenedLora):
            return lora_files.plan(opened, layout, dtype)
        if layout == "kohya":
            raise BadRequest("kohya is a layout of LoRAs; expected official or diffusers")
        return _plan(opened, as_cast("MotionLayout", layout), dtype)

    def reader(self, source: Path, variant: str | None) -> Callable[[str], Tensor] | None:
        opened = image_files.open_image(Source(source, variant))
        return None if opened is None else opened.read


LAYOUTS = Layouts()


def _open(seen: Source) -> Opened | None:
    """What goes into an image model; None for anything else."""
    if seen.pipeline:
        return None
    if told := sparse.recognise(seen.header):
        return Opened(told, sparse.convert(seen.tensors()))
    if control := controlnet_file.recognise(seen.header, seen.config(""), seen.name):
        return Opened(control, controlnet_file.convert(control, seen.tensors()))
    if adapter := ip_adapter_file.recognise(seen.header):
        base = ip_adapter_file.base_of(adapter)
        return Opened(adapter, ip_adapter_file.convert(adapter, base, 0, seen.tensors()))
    motion = motion_file.recognise(seen.header, seen.name)
    if motion is None:
        return None
    tensors = seen.tensors()
    first = {name: tensors[name] for name in motion_file.FIRST if name in tensors}
    return Opened(motion, motion_file.convert(motion, tensors) | first)


def _plan(opened: Opened, layout: MotionLayout, dtype: torch.dtype | None) -> Conversion:
    told = opened.told
    if layout == "hotshot" and not isinstance(told, MotionFile):
        raise BadRequest("hotshot is a layout of motion modules; expected official or diffusers")
    tensors = {name: cast(tensor, dtype) for name, tensor in _exported(opened, layout).items()}
    header = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    notes: tuple[str, ...] = ()
    if isinstance(told, MotionFile | SparseFile) and told.positions is None:
        notes = (f"the file has no positions; sinusoids of {UNTOLD} frames were written",)
    if isinstance(told, AdapterFile) or layout != "diffusers":
        return Conversion((TargetFile("", header, tensors.__getitem__, {"format": "pt"}),), {}, notes)
    tail = ".fp16" if dtype is torch.float16 else ""
    file = TargetFile(f"{WEIGHTS}{tail}.safetensors", header, tensors.__getitem__, {"format": "pt"})
    return Conversion((file,), {"config.json": _config(told, opened.tensors)}, notes)


def layout_of(layout: MotionLayout) -> Literal["official", "diffusers"]:
    return "diffusers" if layout == "diffusers" else "official"


def _exported(opened: Opened, layout: MotionLayout) -> dict[str, Tensor]:
    match opened.told:
        case SparseFile():
            return sparse.export(layout, opened.tensors)
        case MotionFile():
            return motion_file.export(layout, opened.tensors)
        case ControlFile() as control:
            return controlnet_file.export(control, layout_of(layout), opened.tensors)
        case adapter:
            return ip_adapter_file.export(
                layout_of(layout), ip_adapter_file.base_of(adapter), adapter.size, opened.tensors
            )


def _config(told: MotionFile | SparseFile | ControlFile, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    match told:
        case SparseFile():
            return _sparse_config(told, tensors)
        case ControlFile():
            return _control_config(told)
        case _:
            return _adapter_config(told)


def _adapter_config(told: MotionFile) -> dict[str, Any]:
    return {
        "_class_name": "MotionAdapter",
        "block_out_channels": list(told.channels),
        "conv_in_channels": told.first[1] if told.first else None,
        "motion_layers_per_block": told.layers,
        "motion_max_seq_length": told.positions or UNTOLD,
        "motion_mid_block_layers_per_block": 1,
        "motion_norm_num_groups": 32,
        "motion_num_attention_heads": gcd(HEADS, *told.channels),
        "use_motion_mid_block": told.mid,
    }


def _sparse_config(told: SparseFile, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    attends = [f"down_blocks.{i}.attentions.0.norm.weight" in tensors for i in range(len(told.channels))]
    heads = gcd(HEADS, *told.channels)
    return {
        "_class_name": "SparseControlNetModel",
        "block_out_channels": list(told.channels),
        "concat_conditioning_mask": True,
        "conditioning_channels": 4 if told.kind == "rgb" else 3,
        "cross_attention_dim": told.context,
        "down_block_types": ["CrossAttnDownBlockMotion" if a else "DownBlockMotion" for a in attends],
        "in_channels": 4,
        "layers_per_block": 1 + max(int(n.split(".")[3]) for n in tensors if n.startswith("down_blocks.0.resnets.")),
        "motion_max_seq_length": told.positions,
        "motion_num_attention_heads": heads,
        "num_attention_heads": heads,
        "use_simplified_condition_embedding": told.kind == "rgb",
    }


def _control_config(told: ControlFile) -> dict[str, Any]:
    image, size = told.image, told.size
    config: dict[str, Any] = {
        "_class_name": "ControlNetModel",
        "attention_head_dim": list(heads_of(image.channels, bool(image.size_embedding))),
        "block_out_channels": list(image.channels),
        "conditioning_channels": size.hint,
        "controlnet_conditioning_channel_order": "bgr" if size.bgr else "rgb",
        "cross_attention_dim": image.context or 1280,
        "down_block_types": ["DownBlock2D" if d is None else "CrossAttnDownBlock2D" for d in size.depths],
        "global_pool_conditions": size.pooled,
        "in_channels": image.in_channels,
        "layers_per_block": image.layers,
        "mid_block_type": "UNetMidBlock2D" if size.middle is None else "UNetMidBlock2DCrossAttn",
        # The middle has as many as the last level, and diffusers asks for a number also where a level has none.
        "transformer_layers_per_block": [*(d or 0 for d in size.depths[:-1]), size.depths[-1] or size.middle or 0],
        "use_linear_projection": size.linear,
    }
    if image.size_embedding:
        vector = 6 * image.size_embedding + image.pooled
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256 if vector == 2816 else image.size_embedding,
            "projection_class_embeddings_input_dim": vector,
        }
    return config
