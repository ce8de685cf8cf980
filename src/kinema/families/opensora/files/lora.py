"""LoRAs of the transformer: names of its layers in the layouts that people have, to our layers or parts of them.

Adapters of fused layers are split, those of diffusers' split layers joined, and rows of queries and keys moved to the
rotary layout of the network: an adapter changes a weight's rows as the weight's own layout has them. Names without
fused layers are Open-Sora's (`peft` writes them); fused ones and those of diffusers have Flux's rotary layout.

Layouts to write: ``open-sora`` (a folder that PEFT loads), ``diffusers`` (a file for Flux's pipelines) and ``kohya`` (a
file with fused layers, as Flux's trainers write them).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from kinema.checkpoints import lora_convert
from kinema.checkpoints.lora_convert import LoraLayout, OpenedLora, is_kohya, is_peft, written_as
from kinema.checkpoints.lora_formats import (
    Alias,
    Lora,
    Piece,
    check_shapes,
    diffusers,
    is_lora,
    layers_of,
    moved,
    plain,
    read_plain,
    settings_of_part,
)
from kinema.checkpoints.peft import PEFT_CONFIG, PEFT_PREFIX, PEFT_STEM
from kinema.checkpoints.signatures import lora_kind
from kinema.checkpoints.source import Source
from kinema.checkpoints.table import Row
from kinema.families.opensora.config import PRESETS, Config
from kinema.families.opensora.files.transformer_file import Kind, Rope, TransformerFile
from kinema.schema import BadRequest

KIND = "a LoRA of Flux or Open-Sora 2.0"
PART = "transformer."
"""Prefix of our layers."""


def aliases(config: Config) -> Mapping[str, Alias]:
    """Another layout's name of a layer to native, or to the parts of native that it stands for."""
    here = config.transformer.rope
    found: dict[str, Alias] = {}
    for file in (_file(config, "fused", "adjacent", here), _file(config, "separate", "half", here)):
        for row in _rows(file):
            unchanged = len(row.native) == 1 and row.how is None
            found[_layer(row.foreign)] = f"{PART}{_layer(row.native[0])}" if unchanged else _parts(row, PART)
    for row in _rows(_file(config, "diffusers", "adjacent", here)):
        native = f"{PART}{_layer(row.foreign)}"
        how = row.how.backward if row.how else None
        for name, start in zip(row.native, _starts(row), strict=True):
            at = (start, row.shape[0]) if row.sizes else None
            alias: Alias = native if how is None and at is None else (Piece(native, how=how, at=at),)
            found[_layer(name)] = found[f"{PART}{_layer(name)}"] = alias
    return found


# ---------------------------------------------------------------------------------------- converting


def open_lora(source: Source) -> OpenedLora | None:
    """Open a LoRA of any preset's transformer; None for other files and families.

    Raises BadRequest for a tensor that fits no layer or has another size.
    """
    if source.pipeline or not is_lora(source.header) or lora_kind(source.header) != KIND:
        return None
    faults = []
    for preset in ("v2", "v2-dc-ae", "tiny", "tiny-dc-ae"):
        config = PRESETS[preset]
        native = _file(config, "separate", "half").native
        shapes = {f"{PART}{name}": torch.Size(shape) for name, shape in native.items()}
        try:
            lora = read_plain(source.path, layers_of(shapes), aliases(config))
            check_shapes(lora, shapes, f"{source.path.name} is {KIND} of another size: it")
        except BadRequest as error:
            faults.append(error)
        else:
            return lora_convert.opened(source, lora, _layouts(config, layers_of(shapes)))
    raise faults[0]


def layouts(config: Config) -> tuple[LoraLayout, ...]:
    """The layouts to write a LoRA of this model in, by its native layers and in its rotary layout."""
    here = config.transformer.rope
    native = _file(config, "separate", "half", here).native
    modules = [f"{PART}{_layer(name)}" for name, shape in native.items() if name.endswith(".weight") and len(shape) > 1]
    return _layouts(config, modules, here)


def _layouts(config: Config, modules: Iterable[str], here: Rope = "half") -> tuple[LoraLayout, ...]:
    """The layouts to write a LoRA of these native layers in."""
    own = {module: (Piece(module.removeprefix(PART)),) for module in modules}
    rows = _rows(_file(config, "diffusers", "adjacent", here))
    split = {f"{PART}{_layer(row.foreign)}": _parts(row, PART) for row in rows}
    bare = {piece.module.removeprefix(PART): piece.module for pieces in split.values() for piece in pieces}
    fused = {}
    turned = {row.foreign: row.how for row in _rows(_file(config, "separate", "adjacent", here))}
    for row in _rows(_file(config, "fused", "adjacent", here)):
        for name, start in zip(row.native, _starts(row), strict=True):
            how, at = turned[name], (start, row.shape[0]) if row.sizes else None
            piece = Piece(_layer(row.foreign), how=how.backward if how else None, at=at)
            fused[f"{PART}{_layer(name)}"] = (piece,)
    return (
        LoraLayout(
            "open-sora",
            _names(own),
            _peft,
            is_peft,
            moved=lambda lora: plain(moved(lora, own, "the LoRA"), "the LoRA"),
            folder=f"{PEFT_STEM}.safetensors",
            texts=lambda lora: {PEFT_CONFIG: _peft_config(lora)},
        ),
        LoraLayout(
            "diffusers",
            _names(split),
            written_as("diffusers"),
            is_peft,
            bare,
            moved=lambda lora: plain(moved(lora, split, "the LoRA"), "the LoRA"),
        ),
        LoraLayout(
            "kohya",
            _names(fused),
            written_as("kohya"),
            is_kohya,
            moved=lambda lora: plain(moved(lora, fused, "the LoRA"), "the LoRA"),
        ),
    )


def _peft(lora: Lora) -> tuple[dict[str, Tensor], dict[str, str]]:
    return {f"{PEFT_PREFIX}{name}": tensor for name, tensor in diffusers(lora).items()}, {"format": "pt"}


def _peft_config(lora: Lora) -> Mapping[str, object]:
    """PEFT's settings, which it reads from next to the weights."""
    own = {"peft_type": "LORA", "task_type": None, "bias": "none", "lora_dropout": 0.0, "inference_mode": True}
    return own | settings_of_part(lora)


# ---------------------------------------------------------------------------------------- rows of layers


def _file(config: Config, kind: Kind, rope: Rope, here: Rope = "half") -> TransformerFile:
    return TransformerFile(replace(config.transformer, rope=rope), kind, here)


def _rows(file: TransformerFile) -> list[Row]:
    """The rows of layers that a LoRA can change."""
    return [row for row in file.table.rows if row.foreign.endswith(".weight") and len(row.shape) > 1]


def _layer(name: str) -> str:
    return name.removesuffix(".weight")


def _starts(row: Row) -> list[int]:
    """The first row of each native part of a layer."""
    return [0, *accumulate(row.sizes)][: len(row.native)]


def _parts(row: Row, prefix: str) -> tuple[Piece, ...]:
    """The native parts of a layer, as pieces."""
    how, sizes = row.how.forward if row.how else None, row.sizes or row.shape[:1]
    whole = len(row.native) == 1
    return tuple(
        Piece(f"{prefix}{_layer(name)}", rows=None if whole else (start, start + size), how=how)
        for name, start, size in zip(row.native, _starts(row), sizes, strict=True)
    )


def _names(pieces: Mapping[str, tuple[Piece, ...]]) -> list[str]:
    return list(dict.fromkeys(piece.module for each in pieces.values() for piece in each))
