"""Codecs in float32 where their weights are float16: maps of the published ones leave the range of halves.

What diffusers calls ``force_upcast``: of SVD the encoder, of SDXL the whole codec.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def upcast(codec: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``run(x)``, a call of the codec, in float32 where its weights are float16, and else as precise as they are."""
    dtype = next(codec.parameters()).dtype
    if dtype != torch.float16:
        return run(x.to(dtype))
    with in_float32(codec):
        return run(x.float())


@contextmanager
def in_float32(network: nn.Module) -> Iterator[None]:
    """Each part of the network has its weights as floats while it runs; afterwards it has its own again.

    Part by part, as weights that take turns come when a part is called.
    """
    kept: dict[nn.Module, list[tuple[nn.Module, str, nn.Parameter]]] = {}

    def widen(part: nn.Module, _given: Any) -> None:
        here = [(owner, key, p) for owner in part.modules() for key, p in owner._parameters.items() if p is not None]
        for owner, key, p in here:
            owner._parameters[key] = nn.Parameter(p.detach().float(), requires_grad=False)
        kept[part] = here

    def restore(part: nn.Module, *_told: Any) -> None:
        for owner, key, p in kept.pop(part, ()):
            owner._parameters[key] = p

    hooks = []
    for part in network.children():
        hooks.append(part.register_forward_pre_hook(widen))
        hooks.append(part.register_forward_hook(restore, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for part in list(kept):
            restore(part)
