"""Convert image models, motion modules, control networks, IP-Adapters and LoRAs between layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any, Literal
from typing import cast as as_cast

import torch
from torch import Tensor

from kinema.checkpoints import lora_convert
from kinema.checkpoints.convert import Conversion, TargetFile, cast
from kinema.checkpoints.lora_convert import OpenedLora
from kinema.checkpoints.source import Source
from kinema.checkpoints.stable_diffusion import heads_of
from kinema.families.animatediff.control import sparse
from kinema.families.animatediff.control.sparse import SparseFile
from kinema.families.animatediff.files import controlnet_file, image_files, ip_adapter_file, lora_files, motion_file
from kinema.families.animatediff.files.controlnet_file import ControlFile
from kinema.families.animatediff.files.image_files import OpenedImage
from kinema.families.animatediff.files.ip_adapter_file import AdapterFile
from kinema.families.animatediff.files.motion_file import DEFAULT_POSITIONS, HEADS, MotionFile, MotionLayout
from kinema.schema import BadRequest

WEIGHTS = "diffusion_pytorch_model"


@dataclass(frozen=True)
class Opened:
    """A recognised file or folder and its memory-mapped tensors under Kinema's names."""

    contents: MotionFile | SparseFile | ControlFile | AdapterFile
    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


class Layouts:
    """AnimateDiff's layouts, as used by `kinema.checkpoints.convert`."""

    names: tuple[str, ...] = ("official", "diffusers", "hotshot", "kohya")

    def open(self, source: Path, variant: str | None) -> Opened | OpenedImage | OpenedLora | None:
        contents = Source(source, variant)
        return image_files.open_image(contents) or lora_files.open_lora(contents) or _open(contents)

    def plan(self, opened: Opened | OpenedImage | OpenedLora, layout: str, dtype: torch.dtype | None) -> Conversion:
        """Plan one file of the authors' layout or a diffusers folder; an IP-Adapter is always one file."""
        if isinstance(opened, OpenedImage):
            return image_files.plan(opened, layout, dtype)
        if isinstance(opened, OpenedLora):
            return lora_convert.plan(opened, layout, dtype)
        if layout == "kohya":
            raise BadRequest("kohya is a layout for LoRAs; expected official or diffusers")
        return _plan(opened, as_cast("MotionLayout", layout), dtype)

    def reader(self, source: Path, variant: str | None) -> Callable[[str], Tensor] | None:
        opened = image_files.open_image(Source(source, variant))
        return None if opened is None else opened.read


LAYOUTS = Layouts()


def _open(source: Source) -> Opened | None:
    """Open an add-on of an image model; None for anything else."""
    if source.pipeline:
        return None
    if sparse_file := sparse.recognise(source.header):
        return Opened(sparse_file, sparse.convert(source.tensors()))
    if control := controlnet_file.recognise(source.header, source.config(""), source.name):
        return Opened(control, controlnet_file.convert(control, source.tensors()))
    if adapter := ip_adapter_file.recognise(source.header):
        base = ip_adapter_file.base_of(adapter)
        return Opened(adapter, ip_adapter_file.convert(adapter, base, 0, source.tensors()))
    header, left = motion_file.part_of(source.header)
    motion = motion_file.recognise(header, source.name)
    if motion is None:
        return None
    every = source.tensors()
    tensors = {name: every[name] for name in header}
    conv_in = {name: tensors[name] for name in motion_file.CONV_IN if name in tensors}
    notes = motion_file.left_note(source.name, header, left)
    return Opened(motion, motion_file.convert(motion, tensors) | conv_in, notes)


def _plan(opened: Opened, layout: MotionLayout, dtype: torch.dtype | None) -> Conversion:
    contents = opened.contents
    if layout == "hotshot" and not isinstance(contents, MotionFile):
        raise BadRequest("hotshot is a layout for motion modules; expected official or diffusers")
    tensors = {name: cast(tensor, dtype) for name, tensor in _exported(opened, layout).items()}
    header = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    notes = opened.notes
    if isinstance(contents, MotionFile | SparseFile) and contents.positions is None:
        notes += (f"the file has no positions; sinusoids for {DEFAULT_POSITIONS} frames were written",)
    if isinstance(contents, AdapterFile) or layout != "diffusers":
        return Conversion((TargetFile("", header, tensors.__getitem__, {"format": "pt"}),), {}, notes)
    tail = ".fp16" if dtype is torch.float16 else ""
    file = TargetFile(f"{WEIGHTS}{tail}.safetensors", header, tensors.__getitem__, {"format": "pt"})
    return Conversion((file,), {"config.json": _config(contents, opened.tensors)}, notes)


def layout_of(layout: MotionLayout) -> Literal["official", "diffusers"]:
    return "diffusers" if layout == "diffusers" else "official"


def _exported(opened: Opened, layout: MotionLayout) -> dict[str, Tensor]:
    match opened.contents:
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


def _config(contents: MotionFile | SparseFile | ControlFile, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    match contents:
        case SparseFile():
            return _sparse_config(contents, tensors)
        case ControlFile():
            return _control_config(contents)
        case _:
            return _adapter_config(contents)


def _adapter_config(module: MotionFile) -> dict[str, Any]:
    return {
        "_class_name": "MotionAdapter",
        "block_out_channels": list(module.channels),
        "conv_in_channels": module.conv_in[1] if module.conv_in else None,
        "motion_layers_per_block": module.layers,
        "motion_max_seq_length": module.positions or DEFAULT_POSITIONS,
        "motion_mid_block_layers_per_block": 1,
        "motion_norm_num_groups": 32,
        "motion_num_attention_heads": gcd(HEADS, *module.channels),
        "use_motion_mid_block": module.mid,
    }


def _sparse_config(sparse_file: SparseFile, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    has_attention = [f"down_blocks.{i}.attentions.0.norm.weight" in tensors for i in range(len(sparse_file.channels))]
    heads = gcd(HEADS, *sparse_file.channels)
    return {
        "_class_name": "SparseControlNetModel",
        "block_out_channels": list(sparse_file.channels),
        "concat_conditioning_mask": True,
        "conditioning_channels": 4 if sparse_file.kind == "rgb" else 3,
        "cross_attention_dim": sparse_file.context,
        "down_block_types": ["CrossAttnDownBlockMotion" if a else "DownBlockMotion" for a in has_attention],
        "in_channels": 4,
        "layers_per_block": 1 + max(int(n.split(".")[3]) for n in tensors if n.startswith("down_blocks.0.resnets.")),
        "motion_max_seq_length": sparse_file.positions,
        "motion_num_attention_heads": heads,
        "num_attention_heads": heads,
        "use_simplified_condition_embedding": sparse_file.kind == "rgb",
    }


def _control_config(control: ControlFile) -> dict[str, Any]:
    image, size = control.image, control.size
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
        # The middle has the last level's depth; diffusers needs a number even for a level without transformers.
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
