"""LoRAs of the family from layout to layout: kohya's, diffusers', and the authors' (MotionLoRA, the domain adapter).

What a layout has no place for (other names of a layer, notes of training, the type of an alpha) is kept with the first
file's header in the metadata, so that the way back gives that file byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kinema.bounds import few
from kinema.checkpoints import lora_formats
from kinema.checkpoints.convert import Conversion, TargetFile, cast
from kinema.checkpoints.files import listed
from kinema.checkpoints.lora_formats import KOHYA, Lora, PeftAlphas, is_lora, placed, read_lora
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
OURS = {
    "a LoRA": ("v2", "sdxl"),
    "a LoRA of an AnimateDiff motion module": ("v2", "sdxl"),
    "a LoRA of Stable Diffusion 1.5": ("v2",),
    "a LoRA of Stable Diffusion XL": ("sdxl",),
}
"""What a LoRA of this family is called, to the models whose layers it may name: between them they have all."""
_ATTENTION = re.compile(r"unet\..*\.to_(q|k|v|out\.0)")


@dataclass(frozen=True)
class Names:
    """The layers of a model that LoRAs may change, and what else they are called."""

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
    """A LoRA by our names; ``texts`` are the headers of its file and of the one that this was made from."""

    lora: Lora
    names: Names
    texts: tuple[bytes, ...]


def open_lora(source: Source) -> OpenedLora | None:
    """None for a file that is no LoRA, or one of another family. `BadRequest` for a tensor that fits no layer."""
    if source.pipeline or not is_lora(source.header):
        return None
    kind = lora_kind(source.header)
    for names in map(Names, OURS.get(kind, ())):
        if not placed(source.header, names.modules, names.aliases)[1]:
            break
    else:
        if kind == "a LoRA" or kind not in OURS:
            return None
        names = Names(OURS[kind][0])  # reading says which tensors fit no layer of it
    found = read_lora(source.path, names.modules, names.aliases)
    kept = source.metadata.get(NOTE, "").encode()
    return OpenedLora(found, names, tuple(filter(None, (Stream(source.path).text, kept))))


def plan(opened: OpenedLora, layout: str, dtype: torch.dtype | None) -> Conversion:
    """One file; adapters are small enough to be made at once."""
    if layout not in LAYOUTS:
        raise BadRequest(f"a LoRA has no layout {layout}; expected {', '.join(LAYOUTS)}")
    for text in opened.texts if dtype is None else ():
        if (made := as_it_was(opened, text, layout)) is not None:
            return Conversion((_file(made, {}, text),), {})
    made, told = _official(opened.lora) if layout == "official" else lora_formats.laid_out(opened.lora, layout)
    if opened.texts and dtype is None:
        told[NOTE] = opened.texts[-1].decode()
    folded = layout == "official" and any(adapter.scale != 1 for adapter in opened.lora.values())
    notes = ("the authors' layout has no alphas: the layers' up was multiplied by alpha / rank",) if folded else ()
    return Conversion((_file({name: cast(tensor, dtype) for name, tensor in made.items()}, told),), {}, notes)


def _file(tensors: Mapping[str, Tensor], told: Mapping[str, str], text: bytes | None = None) -> TargetFile:
    header = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    return TargetFile("", header, tensors.__getitem__, told, text)


def _official(low: Lora) -> tuple[dict[str, Tensor], dict[str, str]]:
    if others := [name for name in low if not _ATTENTION.fullmatch(name)]:
        raise BadRequest(
            f"the authors' layout holds attention of the U-Net alone, and this LoRA has {len(others)} other layers "
            f"({few(others)}); expected diffusers or kohya"
        )
    return lora.official(low), {"format": "pt"}


def as_it_was(opened: OpenedLora, text: bytes, layout: str) -> dict[str, Tensor] | None:
    """The tensors that a header lists; None where it is of another layout, or these are not what it was written for."""
    header, told = listed(text, "the header that was kept")
    names, low = opened.names, opened.lora
    places, unknown = placed(header, names.modules, names.aliases)
    if unknown or layout_of(header) != layout or {module for module, _ in places.values()} != low.keys():
        return None
    alphas, own = PeftAlphas(told, "this LoRA"), {module for module, role in places.values() if role == "alpha"}
    if any((alphas.of(m) or a.rank) != (a.alpha or a.rank) for m, a in low.items() if m not in own):
        return None
    made = {}
    for key, (module, role) in places.items():
        adapter, (shape, dtype) = low[module], header[key]
        if role == "alpha":
            made[key] = torch.full(shape, adapter.alpha or adapter.rank, dtype=dtype)
        else:
            made[key] = adapter.down if role == "down" else adapter.up
        if (tuple(made[key].shape), made[key].dtype) != (shape, dtype):
            return None
    return made


def layout_of(names: Mapping[str, object]) -> str:
    """The layout of a file with these names; "" for one that is read and not written."""
    if any(name.startswith(tuple(KOHYA)) for name in names):
        return "kohya"
    if all(".lora_A." in name or ".lora_B." in name for name in names):
        return "diffusers"
    return "official" if all(".processor." in n and not n.startswith("unet.") for n in names) else ""
