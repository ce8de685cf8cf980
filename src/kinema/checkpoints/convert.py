"""Convert weights between layouts, one tensor at a time; the target is written completely or not at all.

A family's `Layouts` opens the source and plans the target; this module writes it.
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
from kinema.atomic import check_folder, replacing, write_numbered
from kinema.bounds import MAX_QUOTED, printable
from kinema.checkpoints.files import Header, write_streamed
from kinema.checkpoints.settings import naming_faults
from kinema.checkpoints.signatures import describe
from kinema.checkpoints.source import Source
from kinema.events import Note, OnEvent, Phase, ignore
from kinema.schema import BadRequest

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NOTE = "kinema_original_header"
"""Metadata key of the header of the file that a file was first converted from."""


@dataclass(frozen=True)
class TargetFile:
    """One weight file of a target: its path in the folder ("" for a single file) and how to compute each tensor.

    ``text`` is a safetensors header to write verbatim, taken from an earlier file.
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
    """The contents of a target: one file without a path, or a folder's weight files and JSON files (``texts``)."""

    files: tuple[TargetFile, ...]
    texts: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def is_folder(self) -> bool:
        return any(file.path for file in self.files)


class Layouts(Protocol):
    """The layouts of a family's weight files."""

    names: tuple[str, ...]

    def open(self, source: Path, variant: str | None) -> Any | None:
        """Return the family's view of a file or folder; None if it belongs to another family."""

    def plan(self, opened: Any, layout: str, dtype: torch.dtype | None) -> Conversion:
        """Plan the target for what `open` returned. Raises BadRequest for a layout that these weights do not have."""

    def reader(self, source: Path, variant: str | None) -> Callable[[str], Tensor] | None:
        """Return a reader of single tensors by native name; None for a file that only converts as a whole."""


@dataclass(frozen=True)
class Converted:
    """The result of a conversion."""

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
    ``variant`` selects files such as ``name.fp16.safetensors`` in a source folder. Raises `BadRequest` for a
    source that is missing, damaged or of an unsupported kind (naming the kind), an unknown layout or dtype,
    a target that exists, overlaps the source or cannot be written, and a full disk.
    """
    source, target = Path(source), Path(target)
    if not source.exists():
        raise BadRequest(f"there is no file or folder {source}")
    if dtype is not None and dtype not in DTYPES:
        raise BadRequest(registry.unknown_name("dtype", dtype, DTYPES))
    on_event(Phase("load", source.name))
    family, layouts, opened = _open(source, variant)
    if layout not in layouts.names:
        raise BadRequest(registry.unknown_name(f"layout of {family}", layout, layouts.names))
    plan = layouts.plan(opened, layout, DTYPES[dtype] if dtype else None)
    _check_target(source, target, plan, overwrite)
    for note in plan.notes:
        on_event(Note(note))
    on_event(Phase("write", target.name))
    if overwrite:
        written = _write(plan, target, exclusive=False)
    else:
        written = write_numbered(target, lambda free: _write(plan, free, exclusive=True))
    if written != target:
        on_event(Note(f"{target} was created by another process and was kept; the weights were written to {written}"))
    count, size = sum(len(file.header) for file in plan.files), sum(file.bytes for file in plan.files)
    return Converted(written, family, count, size, plan.notes)


@overload
def cast(source: Tensor, dtype: torch.dtype | None) -> Tensor: ...
@overload
def cast(source: Header, dtype: torch.dtype | None) -> Header: ...
def cast(source: Tensor | Header, dtype: torch.dtype | None) -> Tensor | Header:
    """Cast a tensor, or the dtypes in a header, to a floating-point type; integers stay, as does all with None."""
    if dtype is None:
        return source
    if isinstance(source, Tensor):
        return source.to(dtype) if source.is_floating_point() else source
    return {name: (shape, dtype if kind.is_floating_point else kind) for name, (shape, kind) in source.items()}


def _open(source: Path, variant: str | None) -> tuple[str, Layouts, Any]:
    """Return the source's family, its layouts and its view of the source."""
    known: list[str] = []
    for name in registry.FAMILIES:
        layouts: Layouts | None = registry.family(name).checkpoints.layouts
        if layouts is None:
            continue
        known.append(name)
        with naming_faults(str(source)):
            opened = layouts.open(source, variant)
        if opened is not None:
            return name, layouts, opened
    kind = describe(Source(source, variant))
    raise BadRequest(f"cannot convert {source}: it is {kind}; expected weights of {', '.join(known)}")


def _check_target(source: Path, target: Path, plan: Conversion, overwrite: bool) -> None:
    check_folder(target)
    old, new = source.resolve(), target.resolve()
    if new == old or old in new.parents or new in old.parents:
        raise BadRequest(f"the target {target} overlaps the source {source}; choose another target")
    if os.path.lexists(target):
        if not overwrite:
            raise BadRequest(f"{target} already exists; choose another target or use --overwrite")
        if (other := _other_file(target, plan)) is not None:
            raise BadRequest(
                f"{target} is a folder of other files, such as {printable(other, MAX_QUOTED)}, which would be deleted; "
                "choose another target"
            )
    if not plan.is_folder and target.suffix != ".safetensors":
        raise BadRequest(f"{target.name} is not a name for a single weight file; expected one ending in .safetensors")
    if plan.is_folder and target.suffix in (".safetensors", ".ckpt", ".pt", ".pth", ".bin"):
        raise BadRequest(f"{target.name} is not a name for a folder; expected one without {target.suffix}")
    need, free = sum(file.bytes for file in plan.files), shutil.disk_usage(target.parent).free
    if need > free:
        raise BadRequest(
            f"{target.name} needs {need:,} bytes but only {free:,} are free on its disk; nothing was written"
        )


def _other_file(folder: Path, plan: Conversion) -> str | None:
    """A file in a folder that the plan does not write: a folder is replaced as a whole, so that it would be lost."""
    planned = {*(file.path for file in plan.files), *plan.texts}
    inside = (each for each in folder.rglob("*") if each.is_symlink() or not each.is_dir())
    return next((name for each in inside if (name := each.relative_to(folder).as_posix()) not in planned), None)


def _write(plan: Conversion, target: Path, *, exclusive: bool) -> Path:
    if not plan.is_folder:
        (file,) = plan.files
        with replacing(target, exclusive=exclusive) as part:
            write_streamed(part, file.header, file.make, file.metadata, file.text)
        return target
    with replacing(target, folder=True, exclusive=exclusive) as part:
        for path, text in _sorted(plan.texts):
            place = part / path
            place.parent.mkdir(exist_ok=True)
            place.write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
        for file in plan.files:
            place = part / file.path
            place.parent.mkdir(exist_ok=True)
            write_streamed(place, file.header, file.make, file.metadata, file.text)
    return target


def _sorted(texts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return iter(sorted(texts.items()))
