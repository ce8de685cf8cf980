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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

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


def times(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"


Differences = Mapping[str, Difference]
"""Differences by layer name (``unet.down_blocks.0.attentions.0.….to_q``)."""
