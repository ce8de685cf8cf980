"""The tensors of one layer in a LoRA file, checked and composed to a `Difference`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from kinema.checkpoints.lora_kinds import (
    Adapter,
    Channels,
    Decomposed,
    Difference,
    Factor,
    Generalised,
    Kronecker,
    Products,
    Rotated,
    Whole,
    times,
)
from kinema.checkpoints.lora_names import OFT_PREFIX
from kinema.checkpoints.lora_rows import Biased
from kinema.schema import BadRequest

KINDS = {
    "LoRA": ("down", "up", "mid"),
    "LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "LoKr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    "OFT": ("oft_blocks", "rescale"),
    "GLoRA": ("a1", "a2", "b1", "b2", "bm"),
    "(IA)³": ("weight", "on_input"),
    "full difference": ("diff",),
    "norm": ("w_norm",),
}
"""The roles of each kind's tensors."""
MAGNITUDES, BIASES = ("dora_scale", "magnitude"), ("diff_b", "b_norm", "up_bias")
_NAMES = {"down": "down matrix", "up": "up matrix"}


@dataclass(frozen=True)
class Strength:
    """What a layer's scale is computed from, apart from its tensors: PEFT's settings."""

    alpha: float | None = None
    rank: int | None = None
    """The rank that settings state, for a LoKr of two full matrices."""
    stabilised: bool = False
    """Whether the scale is alpha / √rank."""

    def plain_alpha(self, rank: int) -> float | None:
        """The alpha of a LoRA whose scale is alpha / rank."""
        return self.alpha * math.sqrt(rank) if self.alpha is not None and self.stabilised else self.alpha


@dataclass(frozen=True)
class Parts:
    """The tensors of one layer by role; ``stem`` is its name in the file ``where``, ``module`` in the model."""

    tensors: Mapping[str, Tensor]
    module: str
    stem: str
    where: str
    strength: Strength = Strength()

    def difference(self) -> Difference:
        """Compose the layer's difference. Raises BadRequest for parts that are missing, damaged or of several kinds."""
        for role, tensor in self.tensors.items():
            if not tensor.is_floating_point() and role not in ("alpha", "on_input"):
                raise self.fault(f"has {tensor.dtype} weights", "expected floating-point")
            if not tensor.numel() and role != "alpha":
                empty = "a LoRA of rank 0" if role in ("down", "up") else f"an empty tensor ({role})"
                raise self.fault(f"has {empty}", "expected a rank of at least 1")
            if role != "alpha" and not bool(tensor.float().isfinite().all()):
                raise self.fault(f"has NaN or infinite values ({role})", "expected numbers")
        kinds = [kind for kind, roles in KINDS.items() if any(role in self.tensors for role in roles)]
        if len(kinds) > 1:
            raise self.fault(f"has parts of a {kinds[0]} and of a {kinds[1]}", "expected one kind for a layer")
        weight = self._decomposed(self._weight(kinds[0])) if kinds else None
        bias = self._bias()
        if bias is not None:
            return Biased(weight, bias)
        if weight is None:
            raise self._incomplete("LoRA", "down matrix")
        return weight

    def fault(self, what: str, expected: str) -> BadRequest:
        return BadRequest(f"{self.where} {what} at {self.module}; {expected}")

    # ------------------------------------------------------------------------------- the weight

    def _weight(self, kind: str) -> Difference:
        compose = {
            "LoRA": self._lora,
            "LoHa": self._loha,
            "LoKr": self._lokr,
            "OFT": self._oft,
            "GLoRA": self._glora,
            "(IA)³": self._channels,
            "full difference": lambda: Whole(self._need(kind, "diff")),
            "norm": lambda: Whole(self._need(kind, "w_norm")),
        }
        return compose[kind]()

    def _lora(self) -> Difference:
        down, up = self._need("LoRA", "down"), self._need("LoRA", "up")
        if down.ndim < 2 or up.ndim < 2 or up.shape[1] != down.shape[0]:
            raise self._mismatch(f"down is {times(down)}, up is {times(up)}")
        alpha = self._alpha()
        if "mid" in self.tensors:
            return Products((self._factor("LoRA", "up", "down", "mid"),), self._scale(down.shape[0]))
        return Adapter(down, up, self.strength.plain_alpha(down.shape[0]) if alpha is None else alpha)

    def _loha(self) -> Difference:
        core = bool({"hada_t1", "hada_t2"} & self.tensors.keys())
        first = self._factor("LoHa", "hada_w1_a", "hada_w1_b", "hada_t1" if core else "", turned=core)
        second = self._factor("LoHa", "hada_w2_a", "hada_w2_b", "hada_t2" if core else "", turned=core)
        if first.size != second.size:
            sizes = (f"{rows}×{columns}" for rows, columns in (first.size, second.size))
            raise self._mismatch("the first product is {}, the second {}".format(*sizes))
        return Products((first, second), self._scale(first.down.shape[0]))

    def _glora(self) -> Difference:
        # The first versions of LyCORIS applied each pair in the other order: W A2 A1 + B2 B1.
        a1, a2, b1, b2 = (self._need("GLoRA", name).shape for name in ("a1", "a2", "b1", "b2"))
        ranks, first = {a1[1:2], a2[:1], b1[1:2], b2[:1]}, {a1[:1], a2[1:2], b1[:1], b2[1:2]}
        if len(ranks) > 1 and len(first) == 1 and "bm" not in self.tensors:
            inputs, outputs = self._factor("GLoRA", "a2", "a1"), self._factor("GLoRA", "b2", "b1")
            return Generalised(inputs, outputs, self._scale(inputs.down.shape[0]))
        inputs = self._factor("GLoRA", "a1", "a2")
        outputs = self._factor("GLoRA", "b1", "b2", "bm" if "bm" in self.tensors else "")
        return Generalised(inputs, outputs, self._scale(inputs.down.shape[0]))

    def _lokr(self) -> Difference:
        first, second = self._kronecker_part("lokr_w1"), self._kronecker_part("lokr_w2")
        alpha = self._alpha()
        ranks = [part.down.shape[0] for part in (first, second) if isinstance(part, Factor)]
        if ranks:
            return Kronecker(first, second, self._stated_scale(alpha, ranks[0]))
        # LyCORIS scales two full matrices by one, whatever its file states as alpha; PEFT by its settings.
        return Kronecker(first, second, self._stated_scale(None, self.strength.rank))

    def _kronecker_part(self, name: str) -> Tensor | Factor:
        whole = self.tensors.get(name)
        if whole is None:
            core = "lokr_t2" if name == "lokr_w2" and "lokr_t2" in self.tensors else ""
            return self._factor("LoKr", f"{name}_a", f"{name}_b", core, turned=bool(core))
        if whole.ndim < 2:
            raise self.fault(f"has a {name} of {times(whole)}", "expected a matrix")
        return whole

    def _oft(self) -> Difference:
        blocks, rescale = self._need("OFT", "oft_blocks"), self.tensors.get("rescale")
        rows = blocks.shape[-3] * blocks.shape[-2] if blocks.ndim in (3, 4) else 0
        stages = blocks.shape[0] if blocks.ndim == 4 else 0
        uneven = stages and (blocks.shape[-1] % 2 or rows % (2 ** min(stages, 64) * blocks.shape[-1] // 2))
        if not rows or blocks.shape[-1] != blocks.shape[-2] or uneven:
            raise self.fault(f"has OFT blocks of {times(blocks)}", "expected square blocks that a layer divides into")
        if rescale is not None and rescale.numel() != rows:
            raise self.fault(f"has {rescale.numel()} scales for {rows} rows", "expected one for each row")
        alpha = self._alpha()  # a bound, not a scale
        by_kohya = self.stem.startswith(OFT_PREFIX)
        return Rotated(blocks, rescale, alpha * rows if alpha is not None and (alpha > 0 or by_kohya) else None)

    def _channels(self) -> Difference:
        if "on_input" not in self.tensors:
            raise self.fault("has a whole weight, not a difference,", "expected a LoRA without trained layers")
        on_input, factors = self.tensors["on_input"], self._need("(IA)³", "weight")
        if on_input.numel() != 1:
            raise self.fault(f"has an on_input of {on_input.numel()} values", "expected one")
        return Channels(factors, bool(on_input.item()))

    def _decomposed(self, inner: Difference) -> Difference:
        """With DoRA's magnitudes, if there are any.

        PEFT has one for each row. LyCORIS, OneTrainer and kohya have one for each row (out × 1) or each column
        (1 × in); a vector is PEFT's.
        """
        role = next((role for role in MAGNITUDES if role in self.tensors), None)
        if role is None:
            return inner
        magnitude = self.tensors[role]
        if isinstance(inner, Rotated | Generalised | Channels | Whole):
            raise self.fault(f"has magnitudes (DoRA) over {inner.kind}", "expected a LoRA, LoHa or LoKr")
        by_rows = role == "magnitude" or magnitude.ndim < 2 or magnitude.shape[0] != 1 or magnitude.numel() == 1
        return Decomposed(inner, magnitude, by_rows)

    def _bias(self) -> Tensor | None:
        found = [role for role in BIASES if role in self.tensors]
        if not found:
            return None
        bias = self.tensors[found[0]]
        if len(found) > 1 or bias.ndim != 1:
            raise self.fault(f"has a bias of {times(bias)} ({', '.join(found)})", "expected one vector")
        if found[0] == "up_bias":  # PEFT's lora_bias, which is scaled as the matrices are
            return bias.float() * self._scale(self._need("LoRA", "down").shape[0])
        return bias

    # --------------------------------------------------------------------------------- tensors

    def _need(self, kind: str, role: str) -> Tensor:
        if role not in self.tensors:
            raise self._incomplete(kind, _NAMES.get(role, role))
        return self.tensors[role]

    def _incomplete(self, kind: str, absent: str) -> BadRequest:
        return BadRequest(f"{self.where} has an incomplete {kind} at {self.module}: its {absent} is missing")

    def _factor(self, kind: str, up: str, down: str, core: str = "", *, turned: bool = False) -> Factor:
        """A matrix of two tensors and a core. LyCORIS's LoHa and LoKr have ``up`` turned (rank × out) with a core."""
        one, other = self._need(kind, up), self._need(kind, down)
        middle = self._need(kind, core) if core else None
        if one.ndim < 2 or other.ndim < 2 or (middle is not None and (middle.ndim < 3 or one.numel() == 0)):
            raise self._mismatch(f"{up} is {times(one)}, {down} is {times(other)}")
        factor = Factor(one.mT if turned else one, other, middle)
        if factor.fault:
            raise self._mismatch(factor.fault)
        return factor

    def _mismatch(self, sizes: str) -> BadRequest:
        return BadRequest(f"{self.where} has mismatched ranks at {self.module}: {sizes}")

    # ----------------------------------------------------------------------------------- scale

    def _alpha(self) -> float | None:
        """The alpha in the file."""
        if (own := self.tensors.get("alpha")) is None:
            return None
        if own.numel() != 1:
            raise self.fault(f"has an alpha of {own.numel()} values", "expected one")
        alpha = float(own)
        if not math.isfinite(alpha):
            raise self.fault(f"has an alpha of {alpha}", "expected a finite number")
        return alpha

    def _scale(self, rank: int) -> float:
        return self._stated_scale(self._alpha(), rank)

    def _stated_scale(self, alpha: float | None, rank: int | None) -> float:
        if alpha is not None and rank:
            return alpha / rank
        alpha = self.strength.plain_alpha(rank) if rank else None
        return 1.0 if alpha is None or not rank else alpha / rank
