"""LoRAs of the transformer: names of its layers in the layouts that people have, to our layers or parts of them.

Adapters of fused layers are split, those of diffusers' split layers joined, and rows of queries and keys moved to the
rotary layout of the network: an adapter changes a weight's rows as the weight's own layout has them. Names without
fused layers are Open-Sora's (`peft` writes them); fused ones and those of diffusers have Flux's rotary layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kinema.checkpoints.lora_formats import Alias, Piece
from kinema.families.opensora.config import Config
from kinema.families.opensora.files.transformer_file import TransformerFile


def aliases(config: Config) -> Mapping[str, Alias]:
    """Another layout's name of a layer to native, or to the parts of native that it stands for."""
    here = config.transformer.rope
    fused = TransformerFile(replace(config.transformer, rope="adjacent"), "fused", here)
    foreign = TransformerFile(replace(config.transformer, rope="adjacent"), "diffusers", here)
    own = TransformerFile(replace(config.transformer, rope="half"), "separate", here)
    found: dict[str, Alias] = {}
    for name, alias in {**_pieces(fused), **_pieces(own)}.items():
        found[name] = alias
    for name, alias in _joined(foreign).items():
        found[name] = found[f"transformer.{name}"] = alias
    return found


def _layer(name: str) -> str:
    return name.removesuffix(".weight")


def _pieces(file: TransformerFile) -> dict[str, Alias]:
    """Layers of a file that are one or several of native."""
    found: dict[str, Alias] = {}
    for row in file.table.rows:
        if not row.foreign.endswith(".weight") or len(row.shape) < 2:
            continue
        native = [f"transformer.{_layer(name)}" for name in row.native]
        if len(native) == 1 and row.how is None:
            found[_layer(row.foreign)] = native[0]
            continue
        starts = [sum(row.sizes[:i]) for i in range(len(native))]
        sizes = row.sizes or row.shape[:1]
        found[_layer(row.foreign)] = tuple(
            Piece(module, rows=(start, start + size), how=row.how.forward if row.how else None)
            for module, start, size in zip(native, starts, sizes, strict=True)
        )
    return found


def _joined(file: TransformerFile) -> dict[str, Alias]:
    """Layers of diffusers, which are one of native or a part of one."""
    found: dict[str, Alias] = {}
    for row in file.table.rows:
        if not row.foreign.endswith(".weight") or len(row.shape) < 2:
            continue
        native, how = f"transformer.{_layer(row.foreign)}", row.how.backward if row.how else None
        if len(row.native) == 1 and how is None:
            found[_layer(row.native[0])] = native
            continue
        starts = [sum(row.sizes[:i]) for i in range(len(row.native))]
        for name, start in zip(row.native, starts, strict=True):
            at = (start, row.shape[0]) if row.sizes else None
            found[_layer(name)] = (Piece(native, how=how, at=at),)
    return found
