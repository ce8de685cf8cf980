"""A network that runs once, block by block: a block's weights are read when it is called and dropped after it.

For text encoders that are larger than the memory and read one batch of prompts: reading their file once takes as long
either way, and the peak is one block instead of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kinema.cancel import checkpoint

Read = Callable[[str], Tensor]
"""A weight by its full name."""


@contextmanager
def streamed(
    model: nn.Module, blocks: Sequence[nn.Module], read: Read, device: torch.device, dtype: torch.dtype
) -> Iterator[None]:
    """Run ``model``, built on the meta device, on ``device`` in ``dtype``; all of its weights are gone afterwards.

    Weights outside ``blocks`` stay for the whole run. ``read`` may raise BadRequest for a file that is damaged.
    """
    names = {module: name for name, module in model.named_modules()}
    inside = {id(module) for block in blocks for module in block.modules()}
    held = _Held(read, device, dtype)

    def come(block: nn.Module, *_: Any) -> None:
        checkpoint()
        held.fill(block, names[block])

    def go(block: nn.Module, *_: Any) -> None:
        held.drop(block)

    hooks = [block.register_forward_pre_hook(come) for block in blocks]
    hooks += [block.register_forward_hook(go) for block in blocks]
    outside = [module for module in model.modules() if id(module) not in inside]
    try:
        for module in outside:
            held.fill(module, names[module], deep=False)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        held.drop(model)


class _Held:
    """Puts weights into modules and takes them out again; tied ones are read once while they stay."""

    def __init__(self, read: Read, device: torch.device, dtype: torch.dtype) -> None:
        self.read, self.device, self.dtype = read, device, dtype
        self.tied: dict[int, nn.Parameter] = {}

    def fill(self, module: nn.Module, prefix: str, *, deep: bool = True) -> None:
        for name, owner in module.named_modules() if deep else [("", module)]:
            for key, parameter in owner._parameters.items():
                if parameter is not None and parameter.is_meta:
                    owner._parameters[key] = self._read(
                        parameter, ".".join(part for part in (prefix, name, key) if part)
                    )

    def _read(self, parameter: nn.Parameter, name: str) -> nn.Parameter:
        if id(parameter) not in self.tied:
            tensor = self.read(name).to(self.device, self.dtype)
            found = nn.Parameter(tensor, requires_grad=False)
            found.stands_for = parameter  # type: ignore[attr-defined]
            self.tied[id(parameter)] = found
        return self.tied[id(parameter)]

    def drop(self, module: nn.Module) -> None:
        for owner in module.modules():
            for key, parameter in owner._parameters.items():
                meta = getattr(parameter, "stands_for", None)
                if meta is not None:
                    owner._parameters[key] = meta
                    self.tied.pop(id(meta), None)
