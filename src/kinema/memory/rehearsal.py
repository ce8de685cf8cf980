"""What a call needs in memory, found by running it without numbers: on the meta device tensors are only shapes.

Every tensor that the call makes is counted from its birth to its death, so the peak is that of the real call, but
for what a kernel takes inside itself. No family has to say a formula, and a model larger than the machine can be
asked in a second.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class MemoryUse:
    """One stretch of work: the peak of what it made, and the networks that it ran."""

    peak: int = 0
    networks: set[str] = field(default_factory=set)


class Rehearsal:
    """Counts what lives on the meta device, phase by phase. ``networks`` are watched for being called."""

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self.networks = networks
        self.phases: dict[str, MemoryUse] = {}
        self._living = _Living()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is made in here, and still lives from the phases before, counts towards this phase's peak."""
        phase = self.phases.setdefault(name, MemoryUse())
        hooks = [
            module.register_forward_pre_hook(lambda *_told, name=name: phase.networks.add(name))
            for name, network in self.networks.items()
            for module in network.modules()
        ]
        self._living.peak = self._living.now
        try:
            with _Fused(), self._living:
                yield
        finally:
            for hook in hooks:
                hook.remove()
        phase.peak = max(phase.peak, self._living.peak)


class _Living(TorchDispatchMode):
    """Bytes of the meta tensors that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 1  # a number read off a tensor: how many words there are, whether any is masked
        made = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(made):
            if isinstance(x, Tensor) and x.is_meta:
                self._note(x.untyped_storage(), given)
        return made

    def _note(self, storage: Any, given: set[int]) -> None:
        key = storage._cdata
        if key in self._seen or key in given:
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
    """Fused attention makes its output and nothing else; on the meta device it would be taken apart."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            q, k, v = args[:3]
            return q + (k.sum(-2, keepdim=True) + v.sum(-2, keepdim=True))  # of the right shape, and differentiable
        return func(*args, **(kwargs or {}))
