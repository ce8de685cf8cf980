"""Run float16 codecs in float32: activations of some published codecs overflow float16.

Diffusers' ``force_upcast``; needed for SVD's encoder and for SDXL's whole codec.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def upcast(codec: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``run(x)``, a call of the codec, in float32 if its weights are float16, else in their dtype."""
    dtype = next(codec.parameters()).dtype
    if dtype != torch.float16:
        return run(x.to(dtype))
    with in_float32(codec):
        return run(x.float())


@contextmanager
def in_float32(network: nn.Module) -> Iterator[None]:
    """Cast the weights of each child module to float32 while it runs, and restore them afterwards.

    Works per child because offloaded weights are loaded only when a child is called.
    """
    kept: dict[nn.Module, list[tuple[nn.Module, str, nn.Parameter]]] = {}

    def widen(part: nn.Module, _inputs: Any) -> None:
        owned = [(owner, key, p) for owner in part.modules() for key, p in owner._parameters.items() if p is not None]
        for owner, key, p in owned:
            owner._parameters[key] = nn.Parameter(p.detach().float(), requires_grad=False)
        kept[part] = owned

    def restore(part: nn.Module, *_outputs: Any) -> None:
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
