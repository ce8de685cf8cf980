"""One call under PyTorch's profiler: its matrix products, convolutions and attention, and its seconds by kind.

The profiler sees all threads, so guidance branches in threads of their own are recorded too. Its tree of events is
PyTorch's own (`torch.profiler` reads memory from it); it has sizes, strides and storages of the arguments.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

KINDS = ("linear", "convolution", "attention", "norms", "elementwise", "copies", "other")
PRODUCTS = ("linear", "convolution", "attention")
MATRIX = {"addmm": 1, "addmm_": 1, "baddbmm": 1, "baddbmm_": 1, "mm": 0, "bmm": 0, "addbmm": 1, "addmv": 1}
"""Products of plain tensors, by the index of their first factor."""
PACKED = {"_linear_pointwise", "mkldnn_linear", "_mkl_linear", "linear_relu_dynamic"}
CONVOLUTIONS = {
    "mkldnn_convolution", "slow_conv3d_forward", "_slow_conv2d_forward", "thnn_conv2d", "_convolution_pointwise",
    "slow_conv_dilated2d", "slow_conv_dilated3d", "_conv_depthwise2d", "conv_depthwise3d",
}  # fmt: skip
FUSED = {
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
}  # fmt: skip
CONTAINERS = {
    "linear": "linear", "convolution": "convolution", "_convolution": "convolution", "conv2d": "convolution",
    "conv3d": "convolution", "slow_conv3d": "convolution", "scaled_dot_product_attention": "attention",
    "_scaled_dot_product_attention_math": "attention", "softmax": "attention", "_softmax": "attention",
    "_safe_softmax": "attention",
}  # fmt: skip
NORMS = {
    "native_group_norm", "native_layer_norm", "group_norm", "layer_norm", "rms_norm", "_fused_rms_norm", "mean", "var",
    "var_mean", "std", "sum", "rsqrt", "native_batch_norm", "linalg_vector_norm",
}  # fmt: skip
COPIES = {
    "copy", "cat", "stack", "clone", "contiguous", "_to_copy", "to", "constant_pad_nd", "pad", "fill", "zero", "zeros",
    "upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_nearest3d", "repeat", "repeat_interleave", "index",
    "index_select", "gather", "masked_fill", "im2col", "roll", "to_mkldnn", "to_dense",
}  # fmt: skip
VIEWS = {
    "view", "reshape", "_reshape_alias", "transpose", "permute", "expand", "expand_as", "t", "slice", "select", "chunk",
    "split", "split_with_sizes", "as_strided", "unflatten", "flatten", "unsqueeze", "squeeze", "narrow", "_unsafe_view",
    "numpy_T", "resolve_conj", "resolve_neg", "empty", "empty_like", "empty_strided", "resize", "new_empty", "unbind",
    "item", "_local_scalar_dense", "is_nonzero", "matmul", "result_type", "lift_fresh", "detach", "alias", "view_as",
    "unsafe_chunk", "unsafe_split", "movedim", "swapaxes", "mT",
}  # fmt: skip


@dataclass(frozen=True)
class Product:
    """A product whose operations count: sizes of its factors, and what tells its kernel.

    linear: (rows, in, out). convolution: input and weight sizes, with (stride, padding, dilation, groups).
    attention: of fused kernels q and k sizes ("fused"); of batched products (batch, rows, in, out).
    """

    kind: str
    sizes: tuple[Any, ...]
    dtype: str
    settings: tuple[Any, ...] = ()

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        if self.kind == "convolution":
            (n, _, *places), (out, per_group, *kernel) = self.sizes
            stride, padding, dilation, _ = self.settings
            sides = zip(places, kernel, stride, padding, dilation, strict=True)
            outputs = prod((p + 2 * pad - d * (k - 1) - 1) // s + 1 for p, k, s, pad, d in sides)
            return 2 * n * out * per_group * prod(kernel) * outputs
        if self.settings == ("fused",):
            q, k = self.sizes
            return 4 * prod(q) * k[-2]
        return 2 * prod(self.sizes)


@dataclass
class Recording:
    """What one call did."""

    seconds: float = 0.0
    kinds: dict[str, float] = field(default_factory=dict)
    """Seconds by kind, of `KINDS`: the profiler's self CPU time, and in ``other`` what remains of the whole."""
    products: Counter[Product] = field(default_factory=Counter)
    weight_bytes: int = 0
    threads: int = 1
    """How many threads called operations at the same time, apart from those inside an operation."""

    def operations(self) -> dict[str, float]:
        """Operations by kind of product."""
        counted = dict.fromkeys(PRODUCTS, 0.0)
        for product, calls in self.products.items():
            counted[product.kind] += calls * product.operations
        return counted


def prod(numbers: Iterable[int]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result


def recorded(call: Callable[[], Tensor], networks: Iterable[nn.Module] = ()) -> tuple[Tensor, Recording]:
    """The result of a call, and its recording. Products with weights of the networks are linear layers."""
    weights = {tensor.untyped_storage().data_ptr(): tensor.nbytes for network in networks for tensor in held(network)}
    everywhere = _ExperimentalConfig(profile_all_threads=True)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, experimental_config=everywhere) as profiled:
        began = time.perf_counter()
        result = call()
        took = time.perf_counter() - began
    assert profiled.profiler is not None
    found = profiled.profiler.kineto_results
    concrete = {event.correlation_id(): event.concrete_inputs() for event in found.events() if settled(event.name())}
    recording, threads = Recording(took, dict.fromkeys(KINDS, 0.0)), Counter[int]()
    for event in events(found.experimental_event_tree()):
        name = short(event.name)
        product = product_of(event, name, concrete, weights)
        kind = product.kind if product else kind_of(event, name)
        own = (event.duration_time_ns - sum(child.duration_time_ns for child in event.children)) / 1e9
        recording.kinds[kind] += max(0.0, own)
        threads[event.start_tid] += own if product else 0
        if product:
            recording.products[product] += 1
    at_once = at_the_same_time(threads.values())
    recording.threads = at_once
    recording.kinds = {kind: seconds / at_once for kind, seconds in recording.kinds.items()}
    recording.kinds["other"] += max(0.0, took - sum(recording.kinds.values()))
    recording.weight_bytes = sum(weights.values())
    return result, recording


def at_the_same_time(busy: Iterable[float]) -> int:
    """How many threads work on operations at once: those with at least half of the busiest one's seconds."""
    seconds = list(busy)
    return max(1, sum(each >= max(seconds) / 2 > 0 for each in seconds))


def held(network: nn.Module) -> Iterator[Tensor]:
    """A network's weights in memory; weights packed by oneDNN have no storage, and their layers are named."""
    for tensor in network.parameters():
        if tensor.layout == torch.strided and tensor.device.type != "meta":
            yield tensor


def events(tree: Iterable[Any]) -> Iterator[Any]:
    """All operations; those that the profiler adds itself are left out."""
    stack = list(tree)
    while stack:
        event = stack.pop()
        stack.extend(event.children)
        if "::" in event.name:
            yield event


def short(name: str) -> str:
    return name.rpartition("::")[2].partition(".")[0]


def settled(name: str) -> bool:
    return short(name) in CONVOLUTIONS


def kind_of(event: Any, name: str) -> str:
    """The kind of an operation's own time."""
    name = name if name in CONTAINERS or name in VIEWS else name.removesuffix("_")
    if name in CONTAINERS:
        return CONTAINERS[name]
    if name in MATRIX:  # a product with a row of ones: `kinema.nn.ldm_unet` adds up norms with it
        return "norms"
    for kind, names in (("norms", NORMS), ("copies", COPIES), ("other", VIEWS)):
        if name in names:
            return kind
    return "elementwise" if event.name.startswith("aten::") else "other"


def product_of(event: Any, name: str, concrete: dict[int, list[Any]], weights: dict[int, int]) -> Product | None:
    """The product that an operation is, if it is one."""
    inputs = getattr(event.extra_fields, "inputs", None) or []
    if name in PACKED:
        x, weight, rows = inputs[0], inputs[1], prod(inputs[0].sizes[:-1])
        sizes = (rows, x.sizes[-1], weight.sizes[0])
        # `kinema.nn.attention` passes keys and values as weights.
        of_layer = not weights or weight.storage_data_ptr in (None, *weights)
        return Product("linear", sizes, plain(x)) if of_layer else Product("attention", (1, *sizes), plain(x))
    if name in CONVOLUTIONS:
        x, weight = inputs[0], inputs[1]
        return Product("convolution", (tuple(x.sizes), tuple(weight.sizes)), plain(x),
                       settings_of(name, concrete[event.correlation_id], len(x.sizes) - 2))  # fmt: skip
    if name in FUSED:
        q, k = inputs[0], inputs[1]
        return Product("attention", (tuple(q.sizes), tuple(k.sizes)), plain(q), ("fused",))
    if name not in MATRIX:
        return None
    first, second = inputs[MATRIX[name] : MATRIX[name] + 2]
    sizes = (*first.sizes, second.sizes[-1])
    if in_layer(event) or first.storage_data_ptr in weights or second.storage_data_ptr in weights:
        return Product("linear", sizes if len(sizes) == 3 else (sizes[0] * sizes[1], *sizes[2:]), plain(first))
    if first.sizes[-2] == 1:
        return None
    return Product("attention", sizes if len(sizes) == 4 else (1, *sizes), plain(first))


def in_layer(event: Any) -> bool:
    """Whether a product is one of `F.linear`, which calls it by way of ``matmul`` if there is no bias."""
    above = event.parent
    while above is not None and short(above.name) == "matmul":
        above = above.parent
    return above is not None and short(above.name) == "linear"


def plain(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def settings_of(name: str, given: list[Any], axes: int) -> tuple[Any, ...]:
    """(stride, padding, dilation, groups) from an operation's other arguments."""
    ones, zeros = (1,) * axes, (0,) * axes
    if name in ("slow_conv3d_forward", "_slow_conv2d_forward", "thnn_conv2d"):  # input, weight, kernel, bias, …
        return (wide(given[4], axes) or ones, wide(given[5], axes) or zeros, ones, 1)
    if name == "mkldnn_convolution" or name == "_convolution_pointwise":  # input, weight, bias, padding, stride, …
        return (wide(given[4], axes) or ones, wide(given[3], axes) or zeros, wide(given[5], axes) or ones, given[6])
    return (wide(given[4], axes) or ones, wide(given[5], axes) or zeros, wide(given[-1], axes) or ones, 1)


def wide(values: Any, axes: int) -> tuple[int, ...]:
    found = tuple(values or ())
    return found * axes if len(found) == 1 else found
