"""Differences of parts of layers: with biases, summed, split into rows and placed among other rows.

Other layouts fuse or split layers (queries, keys and values in one), so that a file's difference is that of some rows
of a native layer or of several.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kinema.checkpoints.lora_kinds import Channels, Decomposed, Difference, Generalised, Size
from kinema.schema import BadRequest


@dataclass(frozen=True)
class Biased:
    """A difference of the bias, with one of the weight or without."""

    weight: Difference | None
    bias: Tensor

    @property
    def kind(self) -> str:
        return "a difference of biases" if self.weight is None else f"{self.weight.kind} with biases"

    @property
    def parameters(self) -> tuple[str, ...]:
        return ("bias",) if self.weight is None else ("weight", "bias")

    @property
    def additive(self) -> bool:
        return self.weight is None or self.weight.additive

    def size(self, parameter: str) -> Size:
        return (self.bias.numel(), 1) if parameter == "bias" or self.weight is None else self.weight.size(parameter)

    def delta(self, parameter: str, base: Tensor) -> Tensor:
        if parameter == "bias" or self.weight is None:
            return self.bias.float().reshape(base.shape).to(base.device)
        return self.weight.delta(parameter, base)


@dataclass(frozen=True)
class Sum:
    """Several differences of one layer, the parts of a layer that other layouts split."""

    each: tuple[Difference, ...]

    @property
    def kind(self) -> str:
        return self.each[0].kind

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for one in self.each for name in one.parameters))

    @property
    def additive(self) -> bool:
        return all(one.additive for one in self.each)

    def size(self, parameter: str) -> Size:
        return next(one.size(parameter) for one in self.each if parameter in one.parameters)

    def delta(self, parameter: str, base: Tensor) -> Tensor:
        changes = (one.delta(parameter, base) for one in self.each if parameter in one.parameters)
        return sum(changes, torch.zeros_like(base))


@dataclass(frozen=True)
class Rows:
    """Some rows of an additive difference, after ``how`` transformed all of them."""

    inner: Difference
    rows: tuple[int, int]
    how: Callable[[Tensor], Tensor] | None = None

    @property
    def kind(self) -> str:
        return self.inner.kind

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.inner.parameters

    additive = True

    def size(self, parameter: str) -> Size:
        return self.rows[1] - self.rows[0], self.inner.size(parameter)[1]

    def delta(self, parameter: str, base: Tensor) -> Tensor:
        whole = self.inner.delta(parameter, base.new_empty(self.inner.size(parameter)[0] or 0, *base.shape[1:]))
        return (whole if self.how is None else self.how(whole))[slice(*self.rows)]


@dataclass(frozen=True)
class Placed:
    """A difference of some rows of a layer: those from ``start`` of ``total``."""

    inner: Difference
    start: int
    total: int

    @property
    def kind(self) -> str:
        return self.inner.kind

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.inner.parameters

    @property
    def additive(self) -> bool:
        return self.inner.additive

    def size(self, parameter: str) -> Size:
        return self.total, self.inner.size(parameter)[1]

    def delta(self, parameter: str, base: Tensor) -> Tensor:
        end = self.start + (self.inner.size(parameter)[0] or 0)
        changed = torch.zeros_like(base)
        changed[self.start : end] = self.inner.delta(parameter, base[self.start : end])
        return changed


def rows_of(difference: Difference, rows: tuple[int, int], how: Callable[[Tensor], Tensor] | None) -> Difference:
    """The part of a difference that changes some rows. Raises BadRequest for a kind that cannot be split."""
    if isinstance(difference, Biased):
        bias = Rows(Biased(None, difference.bias), rows, None if how is None else _of_column(how))
        return bias if difference.weight is None else Sum((rows_of(difference.weight, rows, how), bias))
    if isinstance(difference, Decomposed) and difference.by_rows:
        magnitude = difference.magnitude.reshape(-1, 1)
        magnitude = (magnitude if how is None else how(magnitude))[slice(*rows)]
        return replace(difference, inner=rows_of(difference.inner, rows, how), magnitude=magnitude)
    if not difference.additive:
        raise BadRequest(difference.kind)
    return Rows(difference, rows, how)


def _of_column(how: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda vector: how(vector[:, None])[:, 0]


def misfit(difference: Difference, parameter: str, shape: torch.Size) -> str:
    """The size of a difference that does not fit a parameter of this shape, as text; "" if it fits."""
    rows, columns = difference.size(parameter)
    if rows in (shape[0], None) and columns in (shape[1:].numel(), None):
        return _misfit_inside(difference, shape) if parameter == "weight" else ""
    if columns is None:
        return f"{rows} rows"
    return f"{rows}×{columns}" if len(shape) > 1 or columns > 1 else f"{rows}"


def _misfit_inside(difference: Difference, shape: torch.Size) -> str:
    """What does not fit in a difference with the right number of rows and columns."""
    wide, wrong = shape[1] if len(shape) > 1 else 0, ""
    match difference:
        case Sum(each=each):
            wrong = next(filter(None, (_misfit_inside(one, shape) for one in each)), "")
        case Biased(weight=inner) if inner is not None:
            wrong = _misfit_inside(inner, shape)
        case Decomposed(inner=inner, magnitude=norms, by_rows=by_rows):
            fits = norms.numel() == (shape[0] if by_rows else wide)
            wrong = _misfit_inside(inner, shape) if fits else f"{norms.numel()} magnitudes"
        case Generalised(inputs=inputs) if inputs.size != (wide, wide):
            wrong = "×".join(map(str, inputs.size))
        case Channels(factors=factors, on_input=True) if factors.numel() != wide:
            wrong = f"{factors.numel()} columns"
    return wrong
