"""Motion modules and SparseCtrl from the authors' layout to diffusers' and back, for ``kinema convert``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinema.checkpoints.convert import File, Plan, cast
from kinema.checkpoints.source import Source
from kinema.families.animatediff import motion_file, sparse
from kinema.families.animatediff.motion_file import HEADS, UNTOLD, MotionFile, MotionLayout
from kinema.families.animatediff.sparse import SparseFile

WEIGHTS = "diffusion_pytorch_model"


@dataclass(frozen=True)
class Opened:
    """A file or folder: what it holds, and its tensors under our names, memory-mapped."""

    told: MotionFile | SparseFile
    tensors: Mapping[str, Tensor]


class Layouts:
    """What `kinema.checkpoints.convert` asks of a family."""

    family = "animatediff"
    layouts: tuple[MotionLayout, ...] = ("official", "diffusers", "hotshot")

    def open(self, source: Path, variant: str | None) -> Opened | None:
        seen = Source(source, variant)
        if seen.pipeline:
            return None
        if told := sparse.recognise(seen.header):
            return Opened(told, sparse.convert(seen.tensors()))
        motion = motion_file.recognise(seen.header, seen.name)
        return None if motion is None else Opened(motion, motion_file.convert(motion, seen.tensors()))

    def plan(self, opened: Opened, layout: MotionLayout, dtype: torch.dtype | None) -> Plan:
        """One file of the authors' layout, or a folder that diffusers opens."""
        told = opened.told
        made = (sparse if isinstance(told, SparseFile) else motion_file).export(layout, opened.tensors)
        tensors = {name: cast(tensor, dtype) for name, tensor in made.items()}
        header = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        notes: tuple[str, ...] = ()
        if told.positions is None:
            notes = (f"the file has no positions; sinusoids of {UNTOLD} frames were written",)
        if layout != "diffusers":
            return Plan((File("", header, tensors.__getitem__, {"format": "pt"}),), {}, notes)
        tail = ".fp16" if dtype is torch.float16 else ""
        file = File(f"{WEIGHTS}{tail}.safetensors", header, tensors.__getitem__, {"format": "pt"})
        config = _sparse_config(told, opened.tensors) if isinstance(told, SparseFile) else _adapter_config(told)
        return Plan((file,), {"config.json": config}, notes)


LAYOUTS = Layouts()


def _adapter_config(told: MotionFile) -> dict[str, Any]:
    return {
        "_class_name": "MotionAdapter",
        "block_out_channels": list(told.channels),
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
