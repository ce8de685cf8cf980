"""Building networks on the meta device: parameter names and shapes without storage.

Every config is built here before its network takes memory, so this is also where the size of networks from untrusted
configs is limited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module
from torch.overrides import TorchFunctionMode

from kinema.bounds import printable
from kinema.schema import BadRequest

MOST_TENSORS = 20_000
"""Most parameter tensors of one network; Stable Video Diffusion has 2,322."""
MOST_PARAMETERS = 2**36
"""Most parameters of one network; the largest published video models have a fifth."""


class _SkipInitialisation(TorchFunctionMode):
    """Skips in-place writes to meta tensors.

    In torch 2.13 the first ``normal_`` on a meta tensor imports the compiler and sympy, which takes a second or more: a
    fifth of the time to the first clip.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        written = args[0] if args else kwargs.get("tensor")  # `torch.nn.init` passes it by this name
        in_place = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        if (in_place or name == "__setitem__") and isinstance(written, Tensor) and written.is_meta:
            return written
        return func(*args, **kwargs)


class _SizeLimit:
    """Counts a network's parameters while it is built. Raises BadRequest beyond the limits."""

    def __init__(self) -> None:
        self.tensors = self.parameters = 0

    def __call__(self, _owner: nn.Module, _name: str, weight: nn.Parameter | None) -> None:
        if weight is None:
            return
        self.tensors, self.parameters = self.tensors + 1, self.parameters + weight.numel()
        if self.tensors > MOST_TENSORS:
            raise BadRequest(f"the network of this config has more than {MOST_TENSORS:,} weight tensors")
        if self.parameters > MOST_PARAMETERS:
            raise BadRequest(f"the network of this config has more than {MOST_PARAMETERS:,} parameters")


@contextmanager
def on_meta() -> Iterator[None]:
    """Build networks on the meta device within this context.

    Raises BadRequest for networks beyond the size limits and for configs that cannot be built.
    """
    limit = module.register_module_parameter_registration_hook(_SizeLimit())
    try:
        with torch.device("meta"), _SkipInitialisation():
            yield
    except BadRequest:
        raise
    except (RuntimeError, TypeError, ValueError, ArithmeticError, LookupError, AssertionError) as error:
        reason = printable((str(error).strip().splitlines() or [type(error).__name__])[0], 160)
        raise BadRequest(f"no network can be built from this config: {reason}") from error
    finally:
        limit.remove()


def placed(shape: Sequence[int], make: Callable[[], Tensor]) -> Tensor:
    """Return a constant table that ``make`` computes on the CPU, moved to the current default device.

    Within `on_meta` return an empty meta tensor of this shape without computing it.
    """
    device = torch.get_default_device()
    if device.type == "meta":
        return torch.empty(tuple(shape), device=device)
    with torch.device("cpu"):
        return make().to(device)
