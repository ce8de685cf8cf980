"""The kinds of LoRA: what each adds to a layer's weight W, in fp32.

====================  ==============================================================================================
LoRA, LoCon           ``s · B A`` (Hu et al. 2021), with a core T between them ``s · Σ T[m,n] B[:,m] A[n,:]`` (Tucker)
LoHa                  ``s · (B₁ A₁) ∘ (B₂ A₂)`` (Hyeon-Woo et al. 2021), each factor with a core as above
LoKr                  ``s · W₁ ⊗ W₂``, each full or a product of two matrices (Yeh et al. 2023)
DoRA                  ``m · (W + Δ) / ‖W + Δ‖ − W`` for Δ of the above (Liu et al. 2024), norms of rows or of columns
OFT, BOFT             ``(R − 1) W`` with orthogonal blocks ``R = (1 + Q)(1 − Q)⁻¹``, Q skew (Qiu et al. 2023)
GLoRA                 ``s · (W A₁ A₂ + B₁ B₂)`` (Chavan et al. 2023)
(IA)³                 ``W · diag(w)`` or ``diag(w) · W`` (Liu et al. 2022)
full difference       the difference itself, of weights, biases and norms
====================  ==============================================================================================

``s`` is alpha / rank. All are multiplied by the user's weight and added to the weights of the model without LoRAs, so
the order of LoRAs does not count. Tools that multiply inside DoRA's norm or OFT's blocks agree at the weight 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from kinema.schema import BadRequest

Size = tuple[int | None, int | None]
"""Rows of a weight and the product of its other axes; None: any."""


class Difference(Protocol):
    """What a LoRA adds to the parameters of one layer."""

    @property
    def kind(self) -> str:
        """Its name in messages: "a LoHa"."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters that it changes, "weight" and "bias"."""

    @property
    def additive(self) -> bool:
        """Whether the difference does not depend on the weights that it is added to."""

    def size(self, parameter: str) -> Size:
        """The size that the parameter must have."""

    def delta(self, parameter: str, base: Tensor) -> Tensor:
        """The difference to add to a parameter whose fp32 values without LoRAs are ``base``."""


# ------------------------------------------------------------------------------------ low rank


@dataclass(frozen=True)
class Adapter:
    """A plain LoRA: ``down`` (rank × in…) and ``up`` (out × rank…); without ``alpha``, alpha is the rank."""

    down: Tensor
    up: Tensor
    alpha: float | None = None

    kind, parameters, additive = "a LoRA", ("weight",), True

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def stated_alpha(self) -> float:
        """The alpha to write where a layout has one for every adapter."""
        return self.rank if self.alpha is None else self.alpha

    @property
    def scale(self) -> float:
        return self.stated_alpha / self.rank

    def size(self, _parameter: str) -> Size:
        return self.up.shape[0], self.down[0].numel()

    def update(self, shape: torch.Size) -> Tensor:
        """Return the fp32 update of a weight of this shape. For a convolution, ``up`` is 1×1."""
        product = self.up.flatten(1).float() @ self.down.flatten(1).float()
        return (self.scale * product).reshape(shape)

    def delta(self, _parameter: str, base: Tensor) -> Tensor:
        return self.update(base.shape).to(base.device)


@dataclass(frozen=True)
class Factor:
    """A matrix as a product: ``up`` (out × rank…) and ``down`` (rank × in…), or a Tucker core between them.

    The core is rank × rank × kernel; ``up`` then is out × rank and ``down`` rank × in.
    """

    up: Tensor
    down: Tensor
    core: Tensor | None = None

    @property
    def fault(self) -> str:
        """What is wrong with the ranks, "" if they fit."""
        core = self.core.shape[:2] if self.core is not None else (self.up.shape[1], self.down.shape[0])
        if core == (self.up.shape[1], self.down.shape[0]) and core[0] == core[1]:
            return ""
        between = "" if self.core is None else f", their core {times(self.core)}"
        return f"down is {times(self.down)}, up is {times(self.up)}{between}"

    @property
    def size(self) -> tuple[int, int]:
        kernel = 1 if self.core is None else self.core[0, 0].numel()
        return self.up.shape[0], self.down[0].numel() * kernel

    def product(self) -> Tensor:
        """The matrix in fp32, rows × columns."""
        up, down = self.up.flatten(1).float(), self.down.flatten(1).float()
        if self.core is None:
            return up @ down
        return torch.einsum("mn...,im,nj->ij...", self.core.float(), up, down).flatten(1)


@dataclass(frozen=True)
class Products:
    """The product of each factor, multiplied by element: one with a core is a Tucker LoRA, two a LoHa."""

    factors: tuple[Factor, ...]
    scale: float

    parameters, additive = ("weight",), True

    @property
    def kind(self) -> str:
        return "a LoHa" if len(self.factors) > 1 else "a LoRA with a Tucker core"

    def size(self, _parameter: str) -> Size:
        return self.factors[0].size

    def delta(self, _parameter: str, base: Tensor) -> Tensor:
        matrix = math.prod((factor.product() for factor in self.factors), start=torch.tensor(self.scale))
        return matrix.reshape(base.shape).to(base.device)


@dataclass(frozen=True)
class Kronecker:
    """LoKr: the Kronecker product of two matrices, each full or factored."""

    first: Tensor | Factor
    second: Tensor | Factor
    scale: float

    kind, parameters, additive = "a LoKr", ("weight",), True

    def size(self, _parameter: str) -> Size:
        (a, b), (c, d) = _matrix(self.first), _matrix(self.second)
        return a * c, b * d

    def delta(self, _parameter: str, base: Tensor) -> Tensor:
        pair = (self.first, self.second)
        first, second = (x.flatten(1).float() if isinstance(x, Tensor) else x.product() for x in pair)
        return (self.scale * torch.kron(first, second)).reshape(base.shape).to(base.device)


def _matrix(matrix: Tensor | Factor) -> tuple[int, int]:
    return matrix.size if isinstance(matrix, Factor) else (matrix.shape[0], matrix[0].numel())


@dataclass(frozen=True)
class Whole:
    """A full difference."""

    values: Tensor

    kind, parameters, additive = "a full difference", ("weight",), True

    def size(self, _parameter: str) -> Size:
        return self.values.shape[0], self.values[0].numel()

    def delta(self, _parameter: str, base: Tensor) -> Tensor:
        return self.values.float().reshape(base.shape).to(base.device)


# ------------------------------------------------------------------ those that depend on the weights


@dataclass(frozen=True)
class Decomposed:
    """DoRA: another difference, and the norms (``magnitude``) of the changed weight's rows or columns.

    ``by_rows``: a norm for each row, over all other axes; otherwise for each column, over rows and the kernel.
    """

    inner: Difference
    magnitude: Tensor
    by_rows: bool

    parameters, additive = ("weight",), False

    @property
    def kind(self) -> str:
        return f"a DoRA over {self.inner.kind}"

    def size(self, parameter: str) -> Size:
        return self.inner.size(parameter)

    def delta(self, parameter: str, base: Tensor) -> Tensor:
        changed = base + self.inner.delta(parameter, base)
        axis = 0 if self.by_rows else 1
        norm = torch.linalg.vector_norm(changed, dim=[i for i in range(base.ndim) if i != axis], keepdim=True)
        magnitude = self.magnitude.float().to(base.device).reshape(norm.shape)
        return magnitude * (changed / norm.clamp_min(torch.finfo(norm.dtype).eps)) - base


@dataclass(frozen=True)
class Rotated:
    """OFT (``blocks`` n × b × b) and BOFT (stages × n × b × b): the rows of the weight, rotated in blocks.

    Without ``constraint``, any rotation; otherwise Q's norm is at most this. ``rescale`` multiplies rows afterwards.
    """

    blocks: Tensor
    rescale: Tensor | None = None
    constraint: float | None = None

    parameters, additive = ("weight",), False

    @property
    def kind(self) -> str:
        return "an OFT" if self.blocks.ndim == 3 else "a BOFT"

    def size(self, _parameter: str) -> Size:
        return self.blocks.shape[-3] * self.blocks.shape[-2], None

    def rotations(self) -> Tensor:
        """Cayley's transform of the skew part, in fp64 on the CPU: MPS has no fp64."""
        blocks = self.blocks.cpu().double()
        skew = blocks - blocks.mT
        if self.constraint is not None:
            norm = skew.norm()
            # The 1e-8 is kohya's, and counts for a constraint of zero.
            skew = skew * ((norm.clamp(max=self.constraint) + 1e-8) / (norm + 1e-8))
        one = torch.eye(blocks.shape[-1], dtype=torch.float64)
        return torch.linalg.solve(one - skew, one + skew, left=False).float()

    def delta(self, _parameter: str, base: Tensor) -> Tensor:
        rotations, rows = self.rotations().to(base.device), base.flatten(1)
        if self.blocks.ndim == 3:
            turned = torch.einsum("knm,knj->kmj", rotations, rows.unflatten(0, rotations.shape[:2])).flatten(0, 1)
        else:
            turned = rows
            for stage, rotation in enumerate(rotations):
                turned = _butterfly(turned, rotation, 2**stage * rotation.shape[-1] // 2)
        if self.rescale is not None:
            turned = turned * self.rescale.float().to(base.device).reshape(-1, 1)
        return (turned - rows).reshape(base.shape)


def _butterfly(rows: Tensor, rotation: Tensor, far: int) -> Tensor:
    """Rotate blocks of rows that are ``far`` rows from each other in pairs: one stage of BOFT."""
    near = rows.unflatten(0, (-1, 2, far)).transpose(1, 2).flatten(0, 2)
    turned = torch.einsum("bij,bjk->bik", rotation, near.unflatten(0, (-1, rotation.shape[-1]))).flatten(0, 1)
    return turned.unflatten(0, (-1, far, 2)).transpose(1, 2).flatten(0, 2)


@dataclass(frozen=True)
class Generalised:
    """GLoRA: ``inputs`` is A₁ A₂ (in × in), applied to the weight, ``outputs`` B₁ B₂."""

    inputs: Factor
    outputs: Factor
    scale: float

    kind, parameters, additive = "a GLoRA", ("weight",), False

    def size(self, _parameter: str) -> Size:
        return self.outputs.size

    def delta(self, _parameter: str, base: Tensor) -> Tensor:
        up, down = (x.flatten(1).float().to(base.device) for x in (self.inputs.up, self.inputs.down))
        through = torch.einsum("oi...,ir,rj->oj...", base, up, down)
        return self.scale * (through + self.outputs.product().reshape(base.shape).to(base.device))


@dataclass(frozen=True)
class Channels:
    """(IA)³: a factor for each input or output channel, as its difference from one."""

    factors: Tensor
    on_input: bool

    kind, parameters, additive = "an (IA)³", ("weight",), False

    def size(self, _parameter: str) -> Size:
        return (None if self.on_input else self.factors.numel()), None

    def delta(self, _parameter: str, base: Tensor) -> Tensor:
        factors = self.factors.float().to(base.device).flatten()
        shape = [1] * base.ndim
        shape[1 if self.on_input else 0] = -1
        return base * factors.reshape(shape)


# ------------------------------------------------------------------------------------ compositions


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


def times(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"


Differences = Mapping[str, Difference]
"""Differences by layer name (``unet.down_blocks.0.attentions.0.….to_q``)."""
