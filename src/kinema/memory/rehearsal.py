"""Peak memory of a call, measured by running it on the meta device, where tensors have shapes but no storage.

Each tensor counts from its creation until it is freed, so the peak equals the real call's except for workspace inside
kernels. Families need no formula, and a model larger than the machine is measured within a second.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class MemoryUse:
    """Memory use of one phase: peak bytes of the tensors it creates, and the networks it runs."""

    peak: int = 0
    networks: set[str] = field(default_factory=set)


class Rehearsal:
    """Counts live meta tensors, phase by phase, and records which of the ``networks`` are called."""

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self.networks = networks
        self.phases: dict[str, MemoryUse] = {}
        self._live = _LiveBytes()

    @property
    def live(self) -> int:
        """Bytes of the tensors that are alive."""
        return self._live.now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a phase; tensors still alive from earlier phases count towards its peak."""
        phase = self.phases.setdefault(name, MemoryUse())
        hooks = [
            module.register_forward_pre_hook(lambda *_args, name=name: phase.networks.add(name))
            for name, network in self.networks.items()
            for module in network.modules()
        ]
        self._live.peak = self._live.now
        try:
            with _Fused(), self._live:
                yield
        finally:
            for hook in hooks:
                hook.remove()
        phase.peak = max(phase.peak, self._live.peak)


def layout(value: Any) -> Hashable:
    """What memory depends on in a conditioning: the shapes and types of its tensors, and plain values as they are.

    Objects of other types equal nothing, not even themselves in another call.
    """
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), tuple(layout(getattr(value, f.name)) for f in fields(value))
    if isinstance(value, Mapping):
        return tuple((key, layout(each)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(layout, value))
    return value if value is None or isinstance(value, bool | int | float | str) else object()


class _LiveBytes(TorchDispatchMode):
    """Bytes of the live meta tensors, now and at the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 1  # `.item()` of a meta tensor, such as a token count or "is any masked"
        result = func(*args, **(kwargs or {}))
        inputs = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.is_meta:
                self._count(x.untyped_storage(), inputs)
        return result

    def _count(self, storage: Any, inputs: set[int]) -> None:
        key = storage._cdata
        if key in self._seen or key in inputs:
            return
        size = storage.nbytes()
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


class _Fused(TorchFunctionMode):
    """Counts fused attention as its output only; the meta device would decompose it into a full attention matrix."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            q, k, v = args[:3]
            return q + (k.sum(-2, keepdim=True) + v.sum(-2, keepdim=True))  # right shape, and differentiable
        return func(*args, **(kwargs or {}))
