"""Optimisers: AdamW alone, or Muon for the blocks' matrices and AdamW for the rest.

Muon: Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/); updates are scaled to AdamW's root mean
square as in "Muon is Scalable for LLM Training" (Liu et al. 2025, arXiv 2502.16982, eq. 4).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5
_ADAMW_SHARE = 0.3
"""AdamW's share of Muon's learning rate: at the full rate the embeddings and the text encoder diverge."""


class Muon(Optimizer):
    """Momentum SGD whose matrix updates are orthogonalised by five Newton–Schulz iterations.

    ``torch.optim.Muon`` iterates in bf16, which on CPUs without native bfloat16 costs as much as the backward
    pass (measured: four times this one). This one iterates in the parameter's own precision, batching all
    matrices of a shape. A matrix whose height is a multiple of its width (a fused q, k, v) is orthogonalised
    in square blocks, since they act independently.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise ValueError("Muon does not support a closure")
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                nesterov = p.grad.lerp(buffer, group["momentum"]).flatten(1)  # convolutions count as matrices
                by_shape.setdefault(tuple(nesterov.shape), []).append((p, nesterov))
            for (rows, columns), pairs in by_shape.items():
                update = orthogonalise(torch.stack([u for _, u in pairs]))
                scale = group["lr"] * 0.2 * math.sqrt(max(min(rows, columns), columns))
                for (p, _), u in zip(pairs, update, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(u.view_as(p), alpha=-scale)


def orthogonalise(x_NRC: Tensor) -> Tensor:
    """Approximate nearest semi-orthogonal matrices (singular values in about [0.7, 1.2]), same shape."""
    n, rows, columns = x_NRC.shape
    parts = rows // columns if rows > columns and rows % columns == 0 else 1
    x = x_NRC.reshape(n * parts, rows // parts, columns)
    wide = x if x.shape[1] <= x.shape[2] else x.mT
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(_ROUNDS):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    x = wide if x.shape[1] <= x.shape[2] else wide.mT
    return x.reshape(n, rows, columns)


def build(
    name: str, model: nn.Module, blocks: Sequence[nn.Module], learning_rate: float, weight_decay: float
) -> list[Optimizer]:
    """Build the optimisers of a run: ``adamw`` alone, or ``muon`` for the blocks' matrices and AdamW for the rest."""

    def adam(params: Iterable[Tensor]) -> Optimizer:
        return AdamW(params, lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay)

    trainable = [p for p in model.parameters() if p.requires_grad]
    if name == "adamw":
        return [adam(trainable)]
    if name != "muon":
        raise ValueError(f"no optimiser {name!r}; expected adamw or muon")
    named = [(n, p) for block in blocks for n, p in block.named_parameters() if p.requires_grad]
    matrices = [p for n, p in named if p.ndim >= 2 and n.endswith("weight")]
    ids = {id(p) for p in matrices}
    rest = [p for p in trainable if id(p) not in ids]
    for group in (adamw := adam(rest)).param_groups:
        group["share"] = _ADAMW_SHARE
    # torch rejects an optimiser without parameters, as when no block is trained (SparseCtrl).
    return [Muon(matrices, lr=learning_rate, weight_decay=weight_decay), adamw] if matrices else [adamw]


def rate(step: int, steps: int, warmup: int, cooldown: float) -> float:
    """Learning-rate factor at ``step``: linear warm-up, constant, then linear decay over the share ``cooldown``."""
    decay = max(1, int(steps * cooldown))
    return min(1.0, (step + 1) / max(1, warmup), (steps - step) / decay)
