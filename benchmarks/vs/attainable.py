"""The seconds that products, convolutions and attention take alone: the fastest of PyTorch's kernels for each shape.

Weights are as cold as in a step: where the network's weights exceed the cache, every call takes another copy, of more
copies than the cache holds.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import cycle

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.vs.recorded import PRODUCTS, Product, Recording, prod
from kinema.nn import costs
from kinema.nn.linear import native

TIMED, SLOWER, BRIEF = 2, 1.25, 0.02
"""Further calls of each kernel whose first took at most SLOWER times the fastest's; four times as many of calls under
BRIEF seconds."""
WHOLE = 2**27
"""Largest number of attention weights that are computed by plain products."""
Call = Callable[[], Tensor]


class Attainable:
    """Seconds of products alone, each shape timed once in a process."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.known: dict[tuple[Product, bool], float] = {}

    def seconds(self, recording: Recording) -> dict[str, float]:
        """By kind of product, for all calls of a recording."""
        cold, total = recording.weight_bytes > cache_bytes(), dict.fromkeys(PRODUCTS, 0.0)
        for product, calls in recording.products.items():
            total[product.kind] += calls * self.of(product, cold)
        return total

    def of(self, product: Product, cold: bool) -> float:
        """Seconds of one product."""
        key = (product, cold)
        if key not in self.known:
            with torch.no_grad():
                self.known[key] = self.fastest(kernels(product, cold))
        return self.known[key]

    def fastest(self, calls: list[Call]) -> float:
        first = [self.timed(call) for call in calls]
        if min(first) < BRIEF:  # the first call builds what oneDNN keeps, which a step has had built
            first = [self.timed(call) for call in calls]
        rest = [
            [took, *(self.timed(call) for _ in range(TIMED * (4 if took < BRIEF else 1)))]
            for call, took in zip(calls, first, strict=True)
            if took <= SLOWER * min(first)
        ]
        return min(map(statistics.median, rest))

    def timed(self, call: Call) -> float:
        began = self.clock()
        call()
        return self.clock() - began


def cache_bytes() -> int:
    """The size of the processor's last cache, as the package's cost model sees it."""
    return costs.caches()[1]


def kernels(product: Product, cold: bool) -> list[Call]:
    """Calls of every kernel that PyTorch has for a product."""
    dtype = getattr(torch, product.dtype)
    if product.kind == "linear":
        return linear(product.sizes, dtype, cold)
    if product.kind == "convolution":
        return convolutions(product, dtype, cold)
    if product.settings == ("fused",):
        return fused(product.sizes, dtype)
    batch, rows, inner, columns = product.sizes
    x, y = torch.randn(batch, rows, inner, dtype=dtype), torch.randn(batch, columns, inner, dtype=dtype)
    across, out = y.mT.contiguous(), x.new_empty(batch, rows, columns)
    calls = [lambda: torch.bmm(x, y.mT, out=out), lambda: torch.bmm(x, across, out=out)]
    return calls + linear((rows, inner, columns), dtype, cold=False) if batch == 1 else calls


def copies(make: Callable[[], Tensor], cold: bool) -> list[Tensor]:
    """A weight; if cold, more copies of it than the cache holds."""
    first = make()
    return [first, *(first.clone() for _ in range(math.ceil(cache_bytes() / first.nbytes) if cold else 0))]


def over(weights: list[Tensor], call: Callable[[Tensor], Tensor]) -> Call:
    """A call that takes the next of the weights each time."""
    turn: Iterator[Tensor] = cycle(weights)
    return lambda: call(next(turn))


def linear(sizes: tuple[int, ...], dtype: torch.dtype, cold: bool) -> list[Call]:
    rows, inner, columns = sizes
    x, bias = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, dtype=dtype)
    weights = copies(lambda: torch.randn(columns, inner, dtype=dtype), cold)
    calls = [over(weights, lambda w: F.linear(x, w, bias)), over(weights, lambda w: torch.mm(x, w.T))]
    if torch.backends.mkldnn.is_available() and (dtype == torch.float32 or native(dtype)):
        calls.append(over(weights, lambda w: torch.ops.mkldnn._linear_pointwise(x, w, bias, "none", [], "")))
    return calls


def convolutions(product: Product, dtype: torch.dtype, cold: bool) -> list[Call]:
    sizes, weight_sizes = product.sizes
    stride, padding, dilation, groups = product.settings
    x, bias = torch.randn(sizes, dtype=dtype), torch.randn(weight_sizes[0], dtype=dtype)
    weights = copies(lambda: torch.randn(weight_sizes, dtype=dtype), cold)
    if len(sizes) == 5 and weight_sizes[3:] == (1, 1) and stride == dilation == (1, 1, 1) and padding[1:] == (0, 0):
        # The same over (frames, places), in two dimensions.
        x, weights = x.flatten(3), [weight[..., 0] for weight in weights]
        stride, padding, dilation = stride[:2], padding[:2], dilation[:2]
    last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    convolve = F.conv2d if x.ndim == 4 else F.conv3d
    x_last, weights_last = x.contiguous(memory_format=last), [w.contiguous(memory_format=last) for w in weights]
    settings = (stride, padding, dilation, groups)
    calls = [
        over(weights, lambda w: convolve(x, w, bias, *settings)),
        over(weights_last, lambda w: convolve(x_last, w, bias, *settings)),
    ]
    if prod(weight_sizes[2:]) == prod(stride) == groups == 1 and not any(padding):
        rows = x.numel() // sizes[1]
        calls += linear((rows, sizes[1], weight_sizes[0]), dtype, cold)
    return calls


def fused(sizes: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> list[Call]:
    """Attention as PyTorch's kernel and, where the weights are few enough, as two plain products without softmax."""
    q, k = (torch.randn(size, dtype=dtype) for size in sizes)
    v = torch.randn_like(k)
    calls: list[Call] = [lambda: F.scaled_dot_product_attention(q, k, v)]
    if prod(q.shape[:-1]) * k.shape[-2] <= WHOLE:
        weight = torch.randn(*q.shape[:-1], k.shape[-2], dtype=dtype)
        calls.append(lambda: torch.matmul(torch.matmul(q, k.mT, out=weight), v))
    return calls


def budget(recording: Recording, attainable: Attainable) -> dict[str, dict[str, float]]:
    """By kind: seconds of the recorded call, seconds alone, operations, and GFLOP/s alone."""
    alone, operations = attainable.seconds(recording), recording.operations()
    return {
        "seconds": {"all": recording.seconds} | recording.kinds,
        "alone": alone,
        "operations": operations,
        "gflop/s alone": {kind: operations[kind] / alone[kind] / 1e9 for kind in PRODUCTS if alone[kind]},
        "calls": {kind: sum(n for p, n in recording.products.items() if p.kind == kind) for kind in PRODUCTS},
    }
