"""Convert LoRAs between layouts; a family says which layouts its LoRAs have (`LoraLayout`).

The first file's header is kept in the metadata with what a layout cannot contain (other layer names, training notes,
the type of an alpha), so that converting back restores that file byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch import Tensor

from kinema.checkpoints.convert import NOTE, Conversion, TargetFile, cast
from kinema.checkpoints.files import Header, parse_header
from kinema.checkpoints.lora_formats import KOHYA, Alias, Lora, lora_tensors, match_keys, read_plain, stems_of
from kinema.checkpoints.peft import PeftAlphas
from kinema.checkpoints.source import Source
from kinema.checkpoints.stream import Stream
from kinema.schema import BadRequest


def unchanged(lora: Lora) -> Lora:
    return lora


@dataclass(frozen=True)
class LoraLayout:
    """A layout that LoRAs of a family can be written in.

    ``modules`` are the layout's names of layers and ``aliases`` other spellings of them that files have; ``moved``
    renames the adapters of native layers to these, and ``write`` returns the tensors and metadata of a file.
    ``has`` returns whether a file with these tensor names has this layout. ``folder`` names the weight file where the
    layout is a folder, with the files that ``texts`` returns next to it. A layout without ``alphas`` multiplies them
    into the up matrices.
    """

    name: str
    modules: Sequence[str]
    write: Callable[[Lora], tuple[dict[str, Tensor], dict[str, str]]]
    has: Callable[[Iterable[str]], bool]
    aliases: Mapping[str, Alias] = field(default_factory=dict)
    moved: Callable[[Lora], Lora] = unchanged
    alphas: bool = True
    folder: str = ""
    texts: Callable[[Lora], Mapping[str, object]] = lambda _lora: {}


@dataclass(frozen=True)
class OpenedLora:
    """A LoRA by native layers, and its family's layouts; ``texts`` are the headers of its file and of the original."""

    lora: Lora
    layouts: Sequence[LoraLayout]
    texts: tuple[bytes, ...]


def opened(source: Source, lora: Lora, layouts: Sequence[LoraLayout]) -> OpenedLora:
    """Return a LoRA that was read from ``source``, with the headers that restore earlier files."""
    kept = source.metadata.get(NOTE, "").encode()
    return OpenedLora(lora, layouts, tuple(filter(None, (Stream(source.path).text, kept))))


def read(
    source: Source, modules: Iterable[str], aliases: Mapping[str, Alias], layouts: Sequence[LoraLayout]
) -> OpenedLora:
    """Read a LoRA, to convert it. Raises BadRequest as `read_plain`."""
    return opened(source, read_plain(source.path, modules, aliases), layouts)


def plan(source: OpenedLora, name: str, dtype: torch.dtype | None) -> Conversion:
    """Plan the target; LoRAs are small enough to convert in memory."""
    layout = next((each for each in source.layouts if each.name == name), None)
    if layout is None:
        raise BadRequest(f"LoRAs have no layout {name}; expected {', '.join(each.name for each in source.layouts)}")
    lora = layout.moved(source.lora)
    texts = layout.texts(lora)
    for text in source.texts if dtype is None else ():
        if (tensors := restored(lora, layout, text)) is not None:
            return Conversion((_file(layout, tensors, {}, text),), texts)
    tensors, metadata = layout.write(lora)
    if source.texts and dtype is None:
        metadata[NOTE] = source.texts[-1].decode()
    folded = not layout.alphas and any(adapter.scale != 1 for adapter in lora.values())
    notes = (f"layout {name} has no alphas: up weights were multiplied by alpha / rank",) if folded else ()
    tensors = {name: cast(tensor, dtype) for name, tensor in tensors.items()}
    return Conversion((_file(layout, tensors, metadata),), texts, notes)


def _file(
    layout: LoraLayout, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], text: bytes | None = None
) -> TargetFile:
    header = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    return TargetFile(layout.folder, header, tensors.__getitem__, metadata, text)


def restored(lora: Lora, layout: LoraLayout, text: bytes) -> dict[str, Tensor] | None:
    """The tensors that a header lists; None if it has another layout or does not match this LoRA."""
    header: Header
    header, metadata = parse_header(text, "the original header")
    keys, unknown = match_keys(header, layout.modules, layout.aliases)
    having = {kind: {module for module, role in keys.values() if role == kind} for kind in ("down", "up", "alpha")}
    complete = having["down"] == having["up"] == lora.keys() >= having["alpha"]
    if unknown or not layout.has(header) or not complete:
        return None
    alphas, stems = PeftAlphas.noted(metadata, "this LoRA"), stems_of(keys)
    if not layout.folder and any(
        replace(a, alpha=alphas.strength(stems[m]).plain_alpha(a.rank)).scale != a.scale
        for m, a in lora.items()
        if m not in having["alpha"]
    ):
        return None
    tensors = {}
    for key, (module, role) in keys.items():
        adapter, (shape, dtype) = lora[module], header[key]
        if role == "alpha":
            if prod(shape) != 1:  # before anything of this size is allocated: the header may be anyone's
                return None
            tensors[key] = torch.full(shape, adapter.stated_alpha, dtype=torch.float64).to(dtype)
            if float(tensors[key]) != adapter.stated_alpha:  # the alpha was changed to one that this type cannot hold
                return None
        else:
            tensors[key] = adapter.down if role == "down" else adapter.up
        if (tuple(tensors[key].shape), tensors[key].dtype) != (shape, dtype):
            return None
    return tensors


def written_as(name: str) -> Callable[[Lora], tuple[dict[str, Tensor], dict[str, str]]]:
    """Return the writer of a common layout, "diffusers" or "kohya"."""
    return lambda lora: lora_tensors(lora, name)


def is_kohya(names: Iterable[str]) -> bool:
    return any(name.startswith(tuple(KOHYA)) for name in names)


def is_peft(names: Iterable[str]) -> bool:
    """Whether all names are those of PEFT and diffusers."""
    return all(".lora_A." in name or ".lora_B." in name for name in names)
