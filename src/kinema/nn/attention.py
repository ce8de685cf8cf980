"""Softmax attention on every device: PyTorch's fused attention, and plain products where a CPU computes these faster.

Letters: S queries, L keys, D channels of one head.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from kinema.nn.linear import linear, onednn_is_faster

SHORT, PROMPT, WEIGHTS, FEWEST = 64, 80, 2**19, 256
"""CPU attention. Up to SHORT keys: plain batched products. Up to PROMPT keys (a prompt's tokens): the same, WEIGHTS
attention weights at a time, if these are at least FEWEST queries. In bfloat16: FEWEST queries per thread at a time."""
LOGITS = 2**22
"""Logits of float32 attention at a time at most."""
STEEP, SAMPLED = 1.0, 16
"""Standard deviation of half-precision logits above which their rounding error matters, and the number of queries and
keys that it is estimated from."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention over […, S, D]; the leading dimensions of q, k and v are equal.

    On a CPU, PyTorch's fused attention is slow for short sequences, runs bfloat16 at the speed of float32, and float32
    with MKL, which is slow on AMD CPUs. There, this uses plain products: for prompts, some queries at a time; for
    longer sequences, some queries of one head at a time.
    """
    keys = k.shape[-2]
    few = WEIGHTS // (keys * q.shape[:-2].numel())
    prompt = SHORT < keys <= PROMPT and few >= FEWEST and not torch.is_grad_enabled()
    if not q.is_cpu or not (keys <= SHORT or prompt):
        if q.is_cpu and q.dtype == torch.bfloat16 and not torch.is_grad_enabled():
            return torch.ops.kinema.attend_by_heads(q, k, v) if torch.compiler.is_compiling() else _by_heads(q, k, v)
        if q.is_cpu and q.dtype == torch.float32 and _is_plain_inference() and keys >= FEWEST and onednn_is_faster():
            return _by_heads_in_float32(q, k, v)
        return F.scaled_dot_product_attention(q, k, v)
    q = q * (1 / math.sqrt(q.shape[-1]))
    if not prompt:
        return _plain(q, k, v)
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    for at in range(0, q.shape[-2], few):
        out[..., at : at + few, :] = _plain(q[..., at : at + few, :], k, v)
    return out


@cache
def fused_uses_amx() -> bool:
    """Whether PyTorch's fused attention computes bfloat16 natively, which requires AMX tiles."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by plain products; queries are already scaled."""
    if k.shape[-2] > SHORT:
        return torch.matmul(torch.matmul(q, k.transpose(-1, -2)).softmax(-1), v)
    # With up to 14 keys, a softmax over any axis but the last takes half the time.
    weight_LS = torch.matmul(k, q.transpose(-1, -2)).softmax(-2)
    return torch.matmul(weight_LS.transpose(-1, -2), v)


def _by_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of some queries of one head at a time, so that attention weights stay in cache.

    bfloat16 products have 8 significant bits, too few for the differences of large logits. If those of a head are
    large, a second product subtracts each row's maximum before rounding; other heads and clips do not change.
    """
    if fused_uses_amx():
        return F.scaled_dot_product_attention(q, k, v)
    q = q * (1 / math.sqrt(q.shape[-1]))
    steep = (_deviation(q, k) > STEEP).tolist()
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    heads = (x.flatten(0, -3).contiguous() for x in (q, k, v))
    few = FEWEST * torch.get_num_threads()
    weight = q.new_empty(min(few, q.shape[-2]), k.shape[-2])
    for q_SD, k_LD, v_LD, out_SD, is_steep in zip(*heads, out.flatten(0, -3), steep, strict=True):
        for queries, result in zip(q_SD.split(few), out_SD.split(few), strict=True):
            logits = torch.mm(queries, k_LD.T, out=weight[: len(queries)])
            if is_steep:
                offset = logits.amax(-1, keepdim=True).neg_()
                torch.addmm(offset.expand_as(logits), queries, k_LD.T, out=logits)
            torch.mm(logits.softmax(-1), v_LD, out=result)
    return out


def _is_plain_inference() -> bool:
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"))


def _by_heads_in_float32(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same with oneDNN's float32 products, 1.2 to 1.6 times as fast as fused attention."""
    out, scale = q.new_empty(*q.shape[:-1], v.shape[-1]), 1 / math.sqrt(q.shape[-1])
    few = min(FEWEST * torch.get_num_threads(), max(1, LOGITS // k.shape[-2]))
    for head in product(*map(range, q.shape[:-2])):
        q_SD, k_LD, v_DL = q[head] * scale, k[head].contiguous(), v[head].mT.contiguous()
        for queries, result in zip(q_SD.split(few), out[head].split(few), strict=True):
            result.copy_(linear(linear(queries, k_LD).softmax(-1), v_DL))
    return out


def _deviation(q: Tensor, k: Tensor) -> Tensor:
    """Estimate the standard deviation of each head's logits, flattened, from a sample of queries and keys."""
    queries, keys = (x[..., :: max(1, x.shape[-2] // SAMPLED), :] for x in (q, k))
    return torch.matmul(queries, keys.transpose(-1, -2)).float().std((-2, -1)).flatten()


# A custom operator, since a compiler would unroll the loops into a hundred products per layer.
_library = torch.library.Library("kinema", "FRAGMENT")
_library.define("attend_by_heads(Tensor q, Tensor k, Tensor v) -> Tensor")
_library.impl("attend_by_heads", _by_heads, "CPU")
_library.impl("attend_by_heads", lambda q, _, v: q.new_empty(*q.shape[:-1], v.shape[-1]), "Meta")
