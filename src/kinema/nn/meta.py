"""Networks without numbers: names and shapes on the meta device, without what torch loads to do arithmetic there.

Every config is built so before a network of it takes memory. What a stranger's config asks for is therefore bounded
here: so many weights, of so many numbers in all.
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
"""Weights of one network: Stable Video Diffusion has 2,322."""
MOST_NUMBERS = 2**36
"""Numbers in all of them: the largest published video models have a fifth."""


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


class _Bound:
    """Counts the weights of a network while it is built."""

    def __init__(self) -> None:
        self.tensors = self.numbers = 0

    def __call__(self, _owner: nn.Module, _name: str, weight: nn.Parameter | None) -> None:
        if weight is None:
            return
        self.tensors, self.numbers = self.tensors + 1, self.numbers + weight.numel()
        if self.tensors > MOST_TENSORS:
            raise BadRequest(f"this config asks for a network of more than {MOST_TENSORS:,} weights")
        if self.numbers > MOST_NUMBERS:
            raise BadRequest(f"this config asks for a network of more than {MOST_NUMBERS:,} numbers")


@contextmanager
def on_meta() -> Iterator[None]:
    """Build networks here to know their names and shapes.

    Raises `BadRequest` for a network that is larger than any we know, and for sizes of which none can be built.
    """
    counted = module.register_module_parameter_registration_hook(_Bound())
    try:
        with torch.device("meta"), _Uncounted():
            yield
    except BadRequest:
        raise
    except (RuntimeError, TypeError, ValueError, ArithmeticError, LookupError, AssertionError) as error:
        said = printable((str(error).strip().splitlines() or ["no further word"])[0], 160)
        raise BadRequest(f"no network can be built from this config: {said}") from error
    finally:
        counted.remove()


def placed(shape: Sequence[int], make: Callable[[], Tensor]) -> Tensor:
    """A table of this shape that ``make`` computes on the CPU, where tensors are made now.

    Within `on_meta` it is its shape alone, and nothing is computed.
    """
    device = torch.get_default_device()
    if device.type == "meta":
        return torch.empty(tuple(shape), device=device)
    with torch.device("cpu"):
        return make().to(device)
