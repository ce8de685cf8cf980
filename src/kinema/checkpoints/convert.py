"""Weights from one layout to another, one tensor at a time, whole or not at all.

A family's `Layouts` opens a source and plans a target; this module writes the plan.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol, overload

import torch
from torch import Tensor

from kinema import registry
from kinema.atomic import beside, check_folder, replacing
from kinema.checkpoints.files import Header, write_streamed
from kinema.checkpoints.settings import readable
from kinema.checkpoints.signatures import describe
from kinema.checkpoints.source import Source
from kinema.events import Note, OnEvent, Phase, ignore
from kinema.schema import BadRequest

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TargetFile:
    """One weight file of a target: its place in the folder ("" for a single file) and how its tensors are made.

    ``text`` is the header of an earlier file, to be written as it is.
    """

    path: str
    header: Header
    make: Callable[[str], Tensor]
    metadata: Mapping[str, str]
    text: bytes | None = None

    @property
    def bytes(self) -> int:
        return sum(prod(shape) * dtype.itemsize for shape, dtype in self.header.values())


@dataclass(frozen=True)
class Conversion:
    """Everything a target holds: one file without a path, or the files and JSON texts of a folder."""

    files: tuple[TargetFile, ...]
    texts: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def is_folder(self) -> bool:
        return any(file.path for file in self.files)


class Layouts(Protocol):
    """The layouts in which a family's weights exist."""

    names: tuple[str, ...]

    def open(self, source: Path, variant: str | None) -> Any | None:
        """The family's own view of a file or folder, or None for one that is not of this family."""

    def plan(self, opened: Any, layout: str, dtype: torch.dtype | None) -> Conversion:
        """The target that `open`'s view makes in a layout. Raises BadRequest for one that it does not have."""

    def reader(self, source: Path, variant: str | None) -> Callable[[str], Tensor] | None:
        """Reads one tensor at a time by the network's own name; None for a file that only converts as a whole."""


@dataclass(frozen=True)
class Converted:
    """What was written."""

    path: Path
    family: str
    tensors: int
    bytes: int
    notes: tuple[str, ...]


def convert(
    source: str | Path,
    target: str | Path,
    layout: str,
    *,
    dtype: str | None = None,
    variant: str | None = None,
    overwrite: bool = False,
    on_event: OnEvent = ignore,
) -> Converted:
    """Write the weights of ``source`` (a file or folder) to ``target`` in another layout.

    ``dtype`` ("fp32", "fp16", "bf16") casts every floating-point tensor; None keeps them bit for bit.
    ``variant`` picks ``name.fp16.safetensors`` and the like in a source folder. Raises `BadRequest` for a
    source that is missing, damaged or of no family with layouts (and says what it is), an unknown layout or
    dtype, a target that exists, lies in the source, or cannot be written, and a disk that is too small.
    """
    source, target = Path(source), Path(target)
    if not source.exists():
        raise BadRequest(f"there is no file or folder {source}")
    if dtype is not None and dtype not in DTYPES:
        raise BadRequest(registry.unknown("dtype", dtype, DTYPES))
    on_event(Phase("load", source.name))
    family, layouts, opened = _open(source, variant)
    if layout not in layouts.names:
        raise BadRequest(registry.unknown(f"layout of {family}", layout, layouts.names))
    plan = layouts.plan(opened, layout, DTYPES[dtype] if dtype else None)
    _check_target(source, target, plan, overwrite)
    for note in plan.notes:
        on_event(Note(note))
    on_event(Phase("write", target.name))
    if overwrite:
        written = _write(plan, target, exclusive=False)
    else:
        written = beside(target, lambda free: _write(plan, free, exclusive=True))
    if written != target:
        on_event(Note(f"{target} appeared meanwhile and was kept; these weights are {written}"))
    count, size = sum(len(file.header) for file in plan.files), sum(file.bytes for file in plan.files)
    return Converted(written, family, count, size, plan.notes)


@overload
def cast(what: Tensor, dtype: torch.dtype | None) -> Tensor: ...
@overload
def cast(what: Header, dtype: torch.dtype | None) -> Header: ...
def cast(what: Tensor | Header, dtype: torch.dtype | None) -> Tensor | Header:
    """A tensor, or the header of many, in another floating-point type; None and whole numbers stay."""
    if dtype is None:
        return what
    if isinstance(what, Tensor):
        return what.to(dtype) if what.is_floating_point() else what
    return {name: (shape, dtype if kind.is_floating_point else kind) for name, (shape, kind) in what.items()}


def _open(source: Path, variant: str | None) -> tuple[str, Layouts, Any]:
    """The family whose file or folder this is, its layouts, and what they make of it."""
    known: list[str] = []
    for name in registry.FAMILIES:
        layouts: Layouts | None = registry.family(name).checkpoints.layouts
        if layouts is None:
            continue
        known.append(name)
        with readable(str(source)):
            opened = layouts.open(source, variant)
        if opened is not None:
            return name, layouts, opened
    told = describe(Source(source, variant))
    raise BadRequest(f"{source} cannot be converted: layouts are known of {', '.join(known)}, and this is {told}")


def _check_target(source: Path, target: Path, plan: Conversion, overwrite: bool) -> None:
    check_folder(target)
    here, there = source.resolve(), target.resolve()
    if there == here or here in there.parents or there in here.parents:
        raise BadRequest(f"{target} and the source {source} are not apart; name another target")
    if os.path.lexists(target):
        if not overwrite:
            raise BadRequest(f"{target} exists already; name another target, or use --overwrite")
        if target.is_dir() and any(target.iterdir()) and not (target / "model_index.json").is_file():
            raise BadRequest(f"{target} is a folder with other things in it, and would be replaced whole")
    if not plan.is_folder and target.suffix != ".safetensors":
        raise BadRequest(f"{target.name} is to be a single file; expected a name that ends in .safetensors")
    if plan.is_folder and target.suffix in (".safetensors", ".ckpt", ".pt", ".pth", ".bin"):
        raise BadRequest(f"{target.name} is to be a folder; expected a name without {target.suffix}")
    need, free = sum(file.bytes for file in plan.files), shutil.disk_usage(target.parent).free
    if need > free:
        raise BadRequest(f"{target.name} needs {need:,} bytes and the disk has {free:,}; nothing was written")


def _write(plan: Conversion, target: Path, *, exclusive: bool) -> Path:
    if not plan.is_folder:
        (file,) = plan.files
        with replacing(target, exclusive=exclusive) as part:
            write_streamed(part, file.header, file.make, file.metadata, file.text)
        return target
    with replacing(target, folder=True, exclusive=exclusive) as part:
        for path, told in _sorted(plan.texts):
            place = part / path
            place.parent.mkdir(exist_ok=True)
            place.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        for file in plan.files:
            place = part / file.path
            place.parent.mkdir(exist_ok=True)
            write_streamed(place, file.header, file.make, file.metadata, file.text)
    return target


def _sorted(texts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return iter(sorted(texts.items()))
