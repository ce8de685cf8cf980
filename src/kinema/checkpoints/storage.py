"""How weight files of every format name and store tensors: one rule for prefixes and for scaled float8 weights.

Readers of a format return a file's names, shapes and dtypes as they are; `View` gives the names and values that the
rest of Kinema sees. Nothing else removes a prefix that a training framework or a converter added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kinema.bounds import first_names, printable
from kinema.schema import BadRequest
from kinema.values import counted

Header = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of each tensor by name."""

TABLES = ("ema", "state_dict", "model", "controlnet")
"""Entries of a training checkpoint that hold its tensors, tried in this order because published results are sampled
from the averaged weights."""
WRAPPERS = ("module.", "state_dict.", "model.")
"""Prefixes that DataParallel, Lightning and flattened checkpoints put before every name."""
COMPILED = "_orig_mod."
"""What `torch.compile` puts into names, at any level."""
LDM_UNET = "model.diffusion_model."
_UNET_PARTS = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out.")
_UNET_MARKS = ("input_blocks.0.0.weight", "output_blocks.0.0.in_layers.2.weight", "out.2.weight")

_SCALES = (".scale_weight", ".weight_scale")
_UNUSED_SCALES = (".scale_input", ".input_scale")
_MARKS = ("scaled_fp8", "comfy_quant")
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


# ----------------------------------------------------------------------------------------- prefixes


def usual_names(names: Iterable[str]) -> dict[str, str]:
    """Map each name of a file to the usual one.

    Wrappers that all names begin with are removed, outermost first; names without a dot are markers (``v_pred``), which
    stay. The U-Net of ldm and sgm gets its prefix in a whole checkpoint, ``model.diffusion_model.``, where a converter
    left it out or shortened it. Raises `BadRequest` if two names become one.
    """
    found = {name: name for name in names}
    while wrapper := _wrapper(found.values()):
        found = {raw: name.removeprefix(wrapper) for raw, name in found.items()}
    found = {raw: _without_segment(name) for raw, name in found.items()}
    present = set(found.values())
    for prefix in ("", "diffusion_model."):
        if all(prefix + mark in present for mark in _UNET_MARKS):
            parts = tuple(prefix + part for part in _UNET_PARTS)
            inner = {raw: name for raw, name in found.items() if name.startswith(parts)}
            found |= {raw: LDM_UNET + name.removeprefix(prefix) for raw, name in inner.items()}
    if len(set(found.values())) != len(found):
        raise BadRequest("two tensors differ only in the prefix of their names; expected one of each name")
    return found


def _wrapper(names: Iterable[str]) -> str | None:
    """The wrapper that all names but markers begin with."""
    dotted = [name for name in names if "." in name]
    if not dotted or all(name.startswith(LDM_UNET) for name in dotted):
        return None
    return next((w for w in (*WRAPPERS, COMPILED) if all(name.startswith(w) for name in dotted)), None)


def _without_segment(name: str) -> str:
    return name.replace(f".{COMPILED}", ".").removeprefix(COMPILED)


# --------------------------------------------------------------------------------------------- views


@dataclass(frozen=True)
class View:
    """Tensors under their usual names, and how to compute each from what a file stores."""

    header: Header
    stored: Mapping[str, str]
    """Each tensor's name in the file."""
    scales: Mapping[str, str] = field(default_factory=dict)
    """The name in the file of a float8 weight's scale, by the weight's usual name."""
    notes: tuple[str, ...] = ()

    @property
    def renamed(self) -> bool:
        """Whether names or values differ from the file's."""
        return bool(self.scales) or any(name != raw for name, raw in self.stored.items())

    def tensor(self, name: str, read: Callable[[str], Tensor], widened: torch.dtype = torch.float32) -> Tensor:
        """Return one tensor, a scaled one as ``widened``; ``read`` reads the tensor of a name in the file.

        Raises BadRequest for a bad scale.
        """
        tensor = read(self.stored[name])
        if name not in self.scales:
            return tensor
        scale = read(self.scales[name]).float()
        if not bool(torch.isfinite(scale).all()):
            raise BadRequest(f"the scale of {printable(name)} is not finite; expected a number")
        return (tensor.float() * scale.reshape(-1, *(1,) * (tensor.ndim - 1))).to(widened)


def view(raw: Header, where: str) -> View:
    """Return the view of a file's tensors. Raises `BadRequest`, starting with ``where``, for scales that do not fit."""
    try:
        names = usual_names(raw)
    except BadRequest as error:
        raise BadRequest(f"{where}: {error}") from error
    header = {name: raw[stored] for stored, name in names.items()}
    stored = {name: stored for stored, name in names.items()}
    scales = dict(_scales(header, where))
    if not scales and not any(_is_mark(name) for name in header):
        return View(header, stored)
    inputs = [name for name in header if name.endswith(_UNUSED_SCALES)]
    dropped = {*scales.values(), *inputs, *(name for name in header if _is_mark(name))}
    kept = {name: entry for name, entry in header.items() if name not in dropped}
    kept |= {name: (kept[name][0], torch.float32) for name in scales}
    notes = (
        [f"{where} stores {counted(len(scales), 'weight')} as float8 with scales, which are applied"] if scales else []
    )
    if inputs:
        notes.append(
            f"{where} has {counted(len(inputs), 'scale')} of activations ({first_names(inputs)}), which are not used"
        )
    return View(
        kept, {name: stored[name] for name in kept}, {name: stored[s] for name, s in scales.items()}, tuple(notes)
    )


def _scales(header: Header, where: str) -> Iterator[tuple[str, str]]:
    """Yield (weight, its scale), both under usual names."""
    for name, (shape, dtype) in header.items():
        ending = next((each for each in _SCALES if name.endswith(each)), None)
        weight = f"{name.removesuffix(ending)}.weight" if ending else ""
        if weight not in header:
            continue
        sizes, kind = header[weight]
        if kind not in FLOAT8:
            if kind.is_floating_point:
                continue
            stored = str(kind).removeprefix("torch.")
            raise BadRequest(f"{where} stores {printable(weight)} as {stored} with a scale; expected float8")
        rows = sizes[:1] or (1,)
        count = torch.Size(shape).numel()
        if not dtype.is_floating_point or (count != 1 and (shape[:1] != rows or count != rows[0])):
            raise BadRequest(
                f"{where} has the scale {printable(name)} of shape {list(shape)} and dtype "
                f"{str(dtype).removeprefix('torch.')}; expected one number, or one for each of {rows[0]} rows"
            )
        yield weight, name


def _is_mark(name: str) -> bool:
    return name.rpartition(".")[2] in _MARKS
