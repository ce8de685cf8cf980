"""Linear layers by the fastest matrix product that PyTorch has for a CPU.

PyTorch computes float32 linear layers with MKL. On AMD CPUs MKL uses AVX2 only; oneDNN, which PyTorch uses for
convolutions and for bfloat16, uses AVX-512 there: 105 and 225 GFLOP/s on one Zen 5 core (docs/notes/0006-speed.md).
oneDNN's operator has no gradient, so it serves inference alone.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema import processor

LEAST = 2**20
"""Multiplications from which oneDNN is faster in float32: a call takes it 10 microseconds longer than MKL."""


class Linear(nn.Linear):
    """``nn.Linear``, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def adopt(network: nn.Module) -> None:
    """Have the linear layers of another library's network computed by `linear`."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x Wᵀ + b``: x […, in], weight [out, in], bias [out] -> […, out]."""
    if x.dtype == torch.float32 and _suits(x, weight, bias) and onednn_is_faster():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``gelu(x Wᵀ + b)``, exact GELU. In half precision oneDNN applies it before rounding."""
    if _suits(x, weight, bias) and (onednn_is_faster() if x.dtype == torch.float32 else native(x.dtype)):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none")
    out = F.linear(x, weight, bias)
    return F.gelu(out) if out.requires_grad else torch.ops.aten.gelu_(out)


def _suits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN's operator can compute a product, and the product is large enough for it."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):  # first: a compiler would guard the sizes
        return False
    if not x.is_cpu or x.dtype != weight.dtype or x.numel() * weight.shape[0] < LEAST:
        return False
    trained = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    recorded = torch.is_grad_enabled() and trained
    return not recorded and type(x) is Tensor and type(weight) in (Tensor, nn.Parameter)


@cache
def native(dtype: torch.dtype) -> bool:
    """Whether the CPU multiplies bfloat16 natively, so that oneDNN does."""
    return dtype == torch.bfloat16 and torch.backends.mkldnn.is_available() and bool(processor.is_native(dtype))


@cache
def mkl_is_fast() -> bool:
    """Whether MKL uses all of the CPU's units: on Intel's."""
    return torch.backends.mkl.is_available() and "Intel" in processor.cpu_name()


@cache
def onednn_is_faster() -> bool:
    """Whether oneDNN's float32 products are faster than those of MKL: on AMD CPUs with AVX-512."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and torch.backends.mkldnn.is_available() and not mkl_is_fast()
