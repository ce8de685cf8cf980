"""Complete tables of foreign layouts: every tensor with its shape and its native counterpart.

`KeyMap` only renames. A `Table` describes a whole model: it reports missing tensors, splits one tensor into several
(a packed attention projection) and computes any single tensor of either layout, so that a file of ten gigabytes
is converted one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from kinema.bounds import first_names, printable, quoted
from kinema.checkpoints.files import MAX_ENTRIES, Header
from kinema.checkpoints.keymap import Transform
from kinema.checkpoints.settings import FileFault
from kinema.schema import BadRequest

Shape = tuple[int, ...]
Read = Callable[[str], Tensor]
MOST_MODULES = 256
"""Limit on sibling numbered modules; published models have up to 60 layers."""


@dataclass(frozen=True)
class Row:
    """One tensor of a foreign layout, named ``foreign``.

    ``native`` names its native tensors: one; several, which are parts of it along axis 0, equal ones unless ``sizes``
    gives their lengths; or none, if it has no native counterpart. ``how`` transforms the foreign tensor to the native
    one. Rows of one ``group`` may be absent together. ``stand_in`` is a native tensor that may be written for a foreign
    one without counterpart.
    """

    foreign: str
    shape: Shape
    native: tuple[str, ...] = ()
    how: Transform | None = None
    group: str = ""
    stand_in: str = ""
    sizes: tuple[int, ...] = ()

    def forward(self, tensor: Tensor) -> tuple[Tensor, ...]:
        changed = self.how.forward(tensor) if self.how else tensor
        if self.sizes:
            return changed.split(list(self.sizes))
        return changed.chunk(len(self.native)) if len(self.native) > 1 else (changed,)

    def backward(self, *parts: Tensor) -> Tensor:
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        return self.how.backward(whole) if self.how else whole

    def within(self, foreign: str, native: str = "") -> Row:
        """Return the row with these prefixes of its foreign and native names."""
        return replace(self, foreign=foreign + self.foreign, native=tuple(native + name for name in self.native))

    def aside(self, group: str, stand_in: bool = False) -> Row:
        """Return the row without its native counterpart."""
        return replace(self, native=(), group=group, stand_in=self.native[0] if stand_in else "")


class Table:
    """The rows of a complete layout."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = tuple(islice(rows, MAX_ENTRIES + 1))
        if len(self.rows) > MAX_ENTRIES:
            raise BadRequest(
                f"this config describes a model of more than {MAX_ENTRIES:,} tensors; expected at most {MAX_ENTRIES:,}"
            )
        self.by_foreign = {row.foreign: row for row in self.rows}
        self.by_native = {name: (row, i) for row in self.rows for i, name in enumerate(row.native)}
        if len(self.by_foreign) != len(self.rows) or len(self.by_native) != sum(len(row.native) for row in self.rows):
            raise ValueError("two rows of a table have the same name")

    @cached_property
    def foreign(self) -> dict[str, Shape]:
        """Names and shapes of the foreign layout."""
        return {row.foreign: row.shape for row in self.rows}

    @cached_property
    def native(self) -> dict[str, Shape]:
        """Names and shapes of the native layout."""
        return dict(self._shapes())

    def _shapes(self) -> Iterator[tuple[str, Shape]]:
        for row in self.rows:
            if row.native:
                parts = row.forward(torch.empty(row.shape, device="meta"))
                yield from ((name, tuple(part.shape)) for name, part in zip(row.native, parts, strict=True))

    # ------------------------------------------------------------------------------------ whole dicts

    def forward(self, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """Convert foreign tensors to native ones, as views where possible; those without counterpart are skipped.

        Raises `BadRequest` naming tensors that are missing, unexpected or of the wrong shape.
        """
        self.check_foreign({name: tuple(tensor.shape) for name, tensor in tensors.items()}, where)
        native: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            row = self.by_foreign[name]
            if row.native:
                native.update(zip(row.native, row.forward(tensor), strict=True))
        return native

    def backward(self, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """Convert native tensors to foreign ones; those without a native counterpart are skipped."""
        self.check_native({name: tuple(tensor.shape) for name, tensor in tensors.items()}, where)
        return {row.foreign: self.make_foreign(row.foreign, tensors.__getitem__) for row in self.rows if row.native}

    # ------------------------------------------------------------------------------- one at a time

    def make_native(self, name: str, read: Read) -> Tensor:
        """Compute one native tensor; ``read`` returns foreign ones by name."""
        row, part = self.by_native[name]
        return row.forward(read(row.foreign))[part]

    def make_foreign(self, name: str, read: Read) -> Tensor:
        """Compute one foreign tensor, or its stand-in; ``read`` returns native ones by name."""
        row = self.by_foreign[name]
        return row.backward(*(read(native) for native in row.native or (row.stand_in,)))

    # ------------------------------------------------------------------------------------- checking

    def check_foreign(self, shapes: Mapping[str, Shape], where: str) -> None:
        """Raise BadRequest naming foreign tensors that are missing, unexpected or of the wrong shape."""
        present = {row.group for row in self.rows if row.foreign in shapes}
        missing = [r.foreign for r in self.rows if r.foreign not in shapes and (not r.group or r.group in present)]
        _refuse(self.foreign, shapes, missing, where)

    def check_native(self, shapes: Mapping[str, Shape], where: str) -> None:
        """Raise BadRequest naming native tensors that are missing, unexpected or of the wrong shape."""
        _refuse(self.native, shapes, [name for name in self.native if name not in shapes], where)


def shapes_of(header: Header) -> dict[str, Shape]:
    return {name: shape for name, (shape, _) in header.items()}


def _refuse(expected: Mapping[str, Shape], found: Mapping[str, Shape], missing: list[str], where: str) -> None:
    unexpected = [name for name in found if name not in expected]
    wrong = [
        f"{name} is {_times(found[name])}, expected {_times(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    found_faults = (("missing", missing), ("unexpected", unexpected), ("with the wrong shape", wrong))
    if faults := [f"{len(names)} {fault} ({first_names(names)})" for fault, names in found_faults if names]:
        raise BadRequest(f"{where} does not match its layout: {'; '.join(faults)}")


def _times(shape: Shape) -> str:
    return "×".join(str(n) for n in shape) or "a scalar"


def count(header: Header, prefix: str) -> int:
    """Count the numbered modules under a prefix. Raises FileFault for a number out of range."""
    found = {name[len(prefix) :].partition(".")[0] for name in header if name.startswith(prefix)}
    numbers = [n for n in found if n.isdecimal()]
    if far := [n for n in numbers if len(n) > 3 or int(n) >= MOST_MODULES]:
        raise FileFault(
            f"has a module numbered {quoted(far[0])} at {printable(prefix)}; expected 0 to {MOST_MODULES - 1}"
        )
    return 1 + max(map(int, numbers), default=-1)


def shape_in(model: str, header: Header, name: str, rank: int) -> tuple[int, ...]:
    """Return a tensor's shape. Raises FileFault, naming the ``model``, if it is missing or of another rank."""
    if name not in header:
        raise FileFault(f"lacks {name}, which {model} files have")
    shape = header[name][0]
    if len(shape) != rank:
        raise FileFault(f"has {name} with {len(shape)} axes; expected {rank}")
    return shape
