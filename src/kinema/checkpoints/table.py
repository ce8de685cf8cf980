"""Every tensor of a foreign layout, its shape and what it is in ours: a key map that knows what must be there.

`KeyMap` renames what it is given. A `Table` is for layouts that are whole models: it names what a file
lacks, splits one tensor into several (a packed attention projection) and makes any single tensor of
either side, so that a file of ten gigabytes is converted one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from kinema.bounds import few, printable, quoted
from kinema.checkpoints.files import MAX_ENTRIES, Header
from kinema.checkpoints.keymap import Transform
from kinema.schema import BadRequest

Shape = tuple[int, ...]
Read = Callable[[str], Tensor]
MOST_MODULES = 256
"""Numbered modules beside each other: published models have up to 60 layers."""


@dataclass(frozen=True)
class Row:
    """One tensor of their layout.

    ``ours`` are the tensors it becomes: one; several, which are its equal parts along axis 0; or none,
    where our layout has no place for it. ``how`` goes from theirs to ours. Rows of one ``group`` may be
    absent together. ``stand_in`` is the tensor of ours that may be written in its place when it is lost.
    """

    theirs: str
    shape: Shape
    ours: tuple[str, ...] = ()
    how: Transform | None = None
    group: str = ""
    stand_in: str = ""

    def forward(self, tensor: Tensor) -> tuple[Tensor, ...]:
        changed = self.how.forward(tensor) if self.how else tensor
        return changed.chunk(len(self.ours)) if len(self.ours) > 1 else (changed,)

    def backward(self, *parts: Tensor) -> Tensor:
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        return self.how.backward(whole) if self.how else whole

    def within(self, theirs: str, ours: str = "") -> Row:
        """The same row inside modules of these names."""
        return replace(self, theirs=theirs + self.theirs, ours=tuple(ours + name for name in self.ours))

    def aside(self, group: str, stand_in: bool = False) -> Row:
        """The same tensor where our layout has no place for it."""
        return replace(self, ours=(), group=group, stand_in=self.ours[0] if stand_in else "")


class Table:
    """The rows of one whole layout."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = tuple(islice(rows, MAX_ENTRIES + 1))
        if len(self.rows) > MAX_ENTRIES:
            raise BadRequest(f"this config asks for a model of more than {MAX_ENTRIES:,} tensors, which no file holds")
        self.by_theirs = {row.theirs: row for row in self.rows}
        self.by_ours = {name: (row, i) for row in self.rows for i, name in enumerate(row.ours)}
        if len(self.by_theirs) != len(self.rows) or len(self.by_ours) != sum(len(row.ours) for row in self.rows):
            raise ValueError("two rows of a table have one name")

    @cached_property
    def theirs(self) -> dict[str, Shape]:
        """Names and shapes of their layout."""
        return {row.theirs: row.shape for row in self.rows}

    @cached_property
    def ours(self) -> dict[str, Shape]:
        """Names and shapes of our layout."""
        return dict(self._shapes())

    def _shapes(self) -> Iterator[tuple[str, Shape]]:
        for row in self.rows:
            if row.ours:
                parts = row.forward(torch.empty(row.shape, device="meta"))
                yield from ((name, tuple(part.shape)) for name, part in zip(row.ours, parts, strict=True))

    # ------------------------------------------------------------------------------------ whole dicts

    def forward(self, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """Their tensors under our names, views where that is possible; what has no place in ours is left out.

        Raises `BadRequest` that names what is missing, left over or of another shape.
        """
        self.check_theirs({name: tuple(tensor.shape) for name, tensor in tensors.items()}, where)
        made: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            row = self.by_theirs[name]
            if row.ours:
                made.update(zip(row.ours, row.forward(tensor), strict=True))
        return made

    def backward(self, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """Our tensors under their names; what our layout has no place for is not there."""
        self.check_ours({name: tuple(tensor.shape) for name, tensor in tensors.items()}, where)
        return {row.theirs: self.make_theirs(row.theirs, tensors.__getitem__) for row in self.rows if row.ours}

    # ------------------------------------------------------------------------------- one at a time

    def make_ours(self, name: str, read: Read) -> Tensor:
        """One tensor of ours from theirs."""
        row, part = self.by_ours[name]
        return row.forward(read(row.theirs))[part]

    def make_theirs(self, name: str, read: Read) -> Tensor:
        """One tensor of theirs from ours (its stand-in, where it has no other)."""
        row = self.by_theirs[name]
        return row.backward(*(read(ours) for ours in row.ours or (row.stand_in,)))

    # ------------------------------------------------------------------------------------- checking

    def check_theirs(self, shapes: Mapping[str, Shape], where: str) -> None:
        """Refuse a file that is not this layout, naming what is missing, left over or of another shape."""
        begun = {row.group for row in self.rows if row.theirs in shapes}
        missing = [r.theirs for r in self.rows if r.theirs not in shapes and (not r.group or r.group in begun)]
        _refuse(self.theirs, shapes, missing, where)

    def check_ours(self, shapes: Mapping[str, Shape], where: str) -> None:
        """The same for our side, all of which must be there."""
        _refuse(self.ours, shapes, [name for name in self.ours if name not in shapes], where)


def shapes_of(header: Header) -> dict[str, Shape]:
    return {name: shape for name, (shape, _) in header.items()}


def _refuse(expected: Mapping[str, Shape], found: Mapping[str, Shape], missing: list[str], where: str) -> None:
    unexpected = [name for name in found if name not in expected]
    wrong = [
        f"{name} is {_times(found[name])}, expected {_times(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    told = (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
    if faults := [f"{len(names)} {what} ({few(names)})" for what, names in told if names]:
        raise BadRequest(f"{where} does not fit: {'; '.join(faults)}")


def _times(shape: Shape) -> str:
    return "×".join(str(n) for n in shape) or "a scalar"


def count(header: Header, prefix: str) -> int:
    """How many numbered modules there are under a prefix. Raises BadRequest for a number that no model has."""
    found = {name[len(prefix) :].partition(".")[0] for name in header if name.startswith(prefix)}
    numbers = [n for n in found if n.isdecimal()]
    if far := [n for n in numbers if len(n) > 3 or int(n) >= MOST_MODULES]:
        raise BadRequest(
            f"{printable(prefix)} is followed by {quoted(far[0])}; expected modules 0 to {MOST_MODULES - 1}"
        )
    return 1 + max(map(int, numbers), default=-1)


def shape_in(model: str, header: Header, name: str, rank: int) -> tuple[int, ...]:
    """The shape of a tensor that a file of this model has. Raises BadRequest where it lacks it, or has other axes."""
    if name not in header:
        raise BadRequest(f"this file of {model} lacks {name}")
    shape = header[name][0]
    if len(shape) != rank:
        raise BadRequest(f"{name} has {len(shape)} axes; expected {rank}")
    return shape
