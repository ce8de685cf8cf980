"""The family's LoRAs and their layouts: kohya, diffusers, and the authors' (MotionLoRA, the domain adapter)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from kinema.bounds import first_names
from kinema.checkpoints import lora_convert
from kinema.checkpoints.lora_convert import LoraLayout, OpenedLora, is_kohya, is_peft, written_as
from kinema.checkpoints.lora_formats import Lora, is_lora, layers_of, match_keys
from kinema.checkpoints.signatures import lora_kind
from kinema.checkpoints.source import Source
from kinema.families.animatediff.config import PRESETS
from kinema.families.animatediff.files import lora
from kinema.families.animatediff.model import AnimateDiff
from kinema.nn.meta import on_meta
from kinema.schema import BadRequest

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
        return layers_of({name: p.shape for name, p in model.named_parameters()})

    @cached_property
    def aliases(self) -> Mapping[str, str]:
        return lora.aliases(PRESETS[self.preset])

    @property
    def layouts(self) -> tuple[LoraLayout, ...]:
        """The layouts to write, all with native names or aliases of them."""
        return (
            LoraLayout("official", self.modules, _official, _is_official, self.aliases, alphas=False),
            LoraLayout("diffusers", self.modules, written_as("diffusers"), is_peft, self.aliases),
            LoraLayout("kohya", self.modules, written_as("kohya"), is_kohya, self.aliases),
        )


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
    return lora_convert.read(source, names.modules, names.aliases, names.layouts)


def _official(low: Lora) -> tuple[dict[str, Tensor], dict[str, str]]:
    if others := [name for name in low if not _ATTENTION.fullmatch(name)]:
        raise BadRequest(
            f"the authors' layout has only attention layers of the U-Net and this LoRA has {len(others)} other layers "
            f"({first_names(others)}); use diffusers or kohya"
        )
    return lora.official(low), {"format": "pt"}


def _is_official(names: Iterable[str]) -> bool:
    return all(".processor." in name and not name.startswith("unet.") for name in names)
