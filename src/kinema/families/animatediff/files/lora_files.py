"""Convert the family's LoRAs between layouts: kohya, diffusers, and the authors' (MotionLoRA, the domain adapter).

The first file's header is kept in the metadata with what a layout cannot contain (other layer names, training notes,
the type of an alpha), so that converting back restores that file byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kinema.bounds import first_names
from kinema.checkpoints import lora_formats
from kinema.checkpoints.convert import Conversion, TargetFile, cast
from kinema.checkpoints.files import parse_header
from kinema.checkpoints.lora_formats import KOHYA, Lora, PeftAlphas, is_lora, match_keys, read_lora
from kinema.checkpoints.signatures import lora_kind
from kinema.checkpoints.source import Source
from kinema.checkpoints.stream import Stream
from kinema.families.animatediff.config import PRESETS
from kinema.families.animatediff.files import lora
from kinema.families.animatediff.model import AnimateDiff
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest

LAYOUTS = ("official", *lora_formats.LAYOUTS)
NOTE = "kinema_original_header"
FAMILY_LORAS = {
    "a LoRA": ("v2", "sdxl"),
    "a LoRA of an AnimateDiff motion module": ("v2", "sdxl"),
    "a LoRA of Stable Diffusion 1.5": ("v2",),
    "a LoRA of Stable Diffusion XL": ("sdxl",),
}
"""Descriptions of this family's LoRAs to the presets that have the layers they may name."""
_ATTENTION = re.compile(r"unet\..*\.to_(q|k|v|out\.0)")


@dataclass(frozen=True)
class Names:
    """Layers of a preset that LoRAs can change, and their aliases."""

    preset: str

    @cached_property
    def modules(self) -> list[str]:
        with on_meta():
            model = AnimateDiff(PRESETS[self.preset])
        return [n.removesuffix(".weight") for n, p in model.named_parameters() if n.endswith(".weight") and p.ndim > 1]

    @cached_property
    def aliases(self) -> Mapping[str, str]:
        return lora.aliases(PRESETS[self.preset])


@dataclass(frozen=True)
class OpenedLora:
    """A LoRA under Kinema's names; ``texts`` are the headers of its file and of the original file."""

    lora: Lora
    names: Names
    texts: tuple[bytes, ...]


def open_lora(source: Source) -> OpenedLora | None:
    """Open a LoRA; None for other files and families, `BadRequest` for a tensor that fits no layer."""
    if source.pipeline or not is_lora(source.header):
        return None
    kind = lora_kind(source.header)
    for names in map(Names, FAMILY_LORAS.get(kind, ())):
        if not match_keys(source.header, names.modules, names.aliases)[1]:
            break
    else:
        if kind == "a LoRA" or kind not in FAMILY_LORAS:
            return None
        names = Names(FAMILY_LORAS[kind][0])  # reading raises for the tensors that fit no layer
    found = read_lora(source.path, names.modules, names.aliases)
    kept = source.metadata.get(NOTE, "").encode()
    return OpenedLora(found, names, tuple(filter(None, (Stream(source.path).text, kept))))


def plan(opened: OpenedLora, layout: str, dtype: torch.dtype | None) -> Conversion:
    """Plan one file; LoRAs are small enough to convert in memory."""
    if layout not in LAYOUTS:
        raise BadRequest(f"LoRAs have no layout {layout}; expected {', '.join(LAYOUTS)}")
    for text in opened.texts if dtype is None else ():
        if (tensors := restored(opened, text, layout)) is not None:
            return Conversion((_file(tensors, {}, text),), {})
    tensors, metadata = (
        _official(opened.lora) if layout == "official" else lora_formats.lora_tensors(opened.lora, layout)
    )
    if opened.texts and dtype is None:
        metadata[NOTE] = opened.texts[-1].decode()
    folded = layout == "official" and any(adapter.scale != 1 for adapter in opened.lora.values())
    notes = ("the authors' layout has no alphas: up weights were multiplied by alpha / rank",) if folded else ()
    return Conversion((_file({name: cast(tensor, dtype) for name, tensor in tensors.items()}, metadata),), {}, notes)


def _file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], text: bytes | None = None) -> TargetFile:
    header = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    return TargetFile("", header, tensors.__getitem__, metadata, text)


def _official(low: Lora) -> tuple[dict[str, Tensor], dict[str, str]]:
    if others := [name for name in low if not _ATTENTION.fullmatch(name)]:
        raise BadRequest(
            f"the authors' layout has only attention layers of the U-Net and this LoRA has {len(others)} other layers "
            f"({first_names(others)}); use diffusers or kohya"
        )
    return lora.official(low), {"format": "pt"}


def restored(opened: OpenedLora, text: bytes, layout: str) -> dict[str, Tensor] | None:
    """The tensors that a header lists; None if it has another layout or does not match this LoRA."""
    header, metadata = parse_header(text, "the original header")
    names, low = opened.names, opened.lora
    keys, unknown = match_keys(header, names.modules, names.aliases)
    if unknown or layout_of(header) != layout or {module for module, _ in keys.values()} != low.keys():
        return None
    with_alpha = {module for module, role in keys.values() if role == "alpha"}
    alphas = PeftAlphas(metadata, "this LoRA")
    if any((alphas.of(m) or a.rank) != (a.alpha or a.rank) for m, a in low.items() if m not in with_alpha):
        return None
    tensors = {}
    for key, (module, role) in keys.items():
        adapter, (shape, dtype) = low[module], header[key]
        if role == "alpha":
            tensors[key] = torch.full(shape, adapter.alpha or adapter.rank, dtype=dtype)
        else:
            tensors[key] = adapter.down if role == "down" else adapter.up
        if (tuple(tensors[key].shape), tensors[key].dtype) != (shape, dtype):
            return None
    return tensors


def layout_of(names: Mapping[str, object]) -> str:
    """The layout of a file with these names; "" for a read-only layout."""
    if any(name.startswith(tuple(KOHYA)) for name in names):
        return "kohya"
    if all(".lora_A." in name or ".lora_B." in name for name in names):
        return "diffusers"
    return "official" if all(".processor." in n and not n.startswith("unet.") for n in names) else ""
