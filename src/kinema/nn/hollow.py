"""Networks without numbers: names and shapes on the meta device, without what torch loads to do arithmetic there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _Uncounted(TorchFunctionMode):
    """Writing in place to tensors without numbers does nothing.

    In torch 2.13 the first ``normal_`` of a meta tensor imports its compiler and sympy: a second or more for an
    initial value that nobody will see, a fifth of the time to a first clip.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        written = args[0] if args else kwargs.get("tensor")  # the name that `torch.nn.init` gives it
        in_place = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        if (in_place or name == "__setitem__") and isinstance(written, Tensor) and written.is_meta:
            return written
        return func(*args, **kwargs)


@contextmanager
def hollow() -> Iterator[None]:
    """Build networks here to know their names and shapes."""
    with torch.device("meta"), _Uncounted():
        yield


def placed(table: Tensor) -> Tensor:
    """A table that was computed on the CPU, where tensors are made now: within `hollow` its shape alone."""
    device = torch.get_default_device()
    return torch.empty(table.shape, dtype=table.dtype, device=device) if device.type == "meta" else table.to(device)
