"""Choice of a model's precision, and the conversion of its weights to it.

By default a GPU computes in the half precision of the model's file, and a CPU in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from kinema import processor
from kinema.processor import HALF_PRECISIONS
from kinema.registry import unknown_name
from kinema.schema import BadRequest
from kinema.values import quoted

DTypeOption = torch.dtype | Literal["auto"] | None
"""A dtype; "auto": bfloat16 if the device has it natively; None: the file's precision on an accelerator, float32 on a
CPU."""
NAMES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Names of dtypes on the command line and in the settings of the service."""
PRECISIONS = (torch.float32, *HALF_PRECISIONS, torch.float64)


@dataclass(frozen=True)
class WeightPolicy:
    """How weights are converted between file and compute.

    A weight is *stored* in its file; offloaded, it waits there or in host memory. `ready` moves it to the device: it
    rounds to ``precision``, merges LoRAs and casts to ``computed``. Resident and offloaded weights use the same path.
    """

    precision: torch.dtype = torch.float32
    """Precision that weights are rounded to; recorded in recipes."""
    computed: torch.dtype = torch.float32
    """Precision the network computes in: ``precision``, or float32 if the device or model does not support that."""
    note: str = ""
    """One sentence that explains the choice; may be empty."""

    def ready(
        self,
        weight: Tensor,
        device: torch.device,
        *,
        merge: Callable[[Tensor], Tensor] | None = None,
        like: Tensor | None = None,
    ) -> Tensor:
        """Convert a stored or offloaded weight to the one the network computes with on the device.

        ``merge`` adds LoRAs to the rounded weight, in float32. The result has the strides of ``like``.
        """
        if weight.is_floating_point():
            if merge is not None or self.precision != self.computed:  # otherwise the cast below rounds
                weight = weight.to(self.precision)
            if merge is not None:
                weight = merge(weight)
            if like is None:
                return weight.to(device, self.computed)
        if like is None or (weight.dtype, weight.device, weight.stride()) == (like.dtype, device, like.stride()):
            return weight.to(device)
        return torch.empty_like(like, device=device).copy_(weight, non_blocking=weight.is_pinned())

    def placed(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Convert all of a model's weights and buffers, in place, onto the device."""
        return model._apply(lambda tensor: self.ready(tensor, device))

    def bytes(self, count: int) -> int:
        """Bytes of ``count`` weight values on the device."""
        return count * self.computed.itemsize


def policy_for(dtype: torch.dtype, device: torch.device, *, fits_float16: bool = True) -> WeightPolicy:
    """Return the policy for a requested precision. Raises BadRequest if the device does not support it.

    The network computes in float32 on a CPU without native support for the half precision, where half-precision
    products are several times slower and less accurate, and if the model exceeds float16's range
    (``Defaults.fits_float16``).
    """
    if dtype not in PRECISIONS:
        raise BadRequest(f"dtype is {quoted(str(dtype))}; expected {', '.join(map(dtype_name, PRECISIONS))} or auto")
    name, where = dtype_name(dtype), device_title(device)
    if dtype == torch.float64 and not processor.is_native_on(device, dtype):
        raise BadRequest(f"{where} does not support float64; use float32, bfloat16 or float16")
    how = f"weights are rounded to {name}, and the network computes in float32"
    if dtype == torch.float16 and not fits_float16:
        return WeightPolicy(dtype, torch.float32, f"this model exceeds float16's range: {how}")
    if device.type == "cpu" and dtype in HALF_PRECISIONS and processor.is_native(dtype) is False:
        return WeightPolicy(dtype, torch.float32, f"{where} has no native {name}: {how}")
    return WeightPolicy(dtype, dtype)


def default_policy(
    device: torch.device, stored: torch.dtype | None, *, auto: bool = False, fits_float16: bool = True
) -> WeightPolicy:
    """Return the policy for no requested precision, or for "auto". ``stored`` is the file's precision; None: untrained.

    A float32 file stays in float32 unless "auto" is requested, since the model may need more than half precision.
    """
    bf16, where = processor.is_native_on(device, torch.bfloat16), device_title(device)
    if device.type == "cpu":
        if auto and bf16:
            return _computing_in(torch.bfloat16, f"which {where} has natively")
        return WeightPolicy(note=f"computes in float32: {where} has no native bfloat16" if auto else "")
    name = "" if stored is None else dtype_name(stored) if stored.itemsize > 1 else "8 bits or fewer"
    by_file = "as the model is untrained" if stored is None else f"as its weights are stored in {name}"
    if stored == torch.float16 and fits_float16:
        return _computing_in(torch.float16, by_file)
    why = f"{by_file}, whose range this model exceeds" if stored == torch.float16 else by_file
    if stored is not None and stored.itemsize <= torch.bfloat16.itemsize:
        why_not = f"{why}, and {where} has no native bfloat16"
        return _computing_in(torch.bfloat16, why) if bf16 else _computing_in(torch.float32, why_not)
    if auto and bf16:
        return _computing_in(torch.bfloat16, f"which {where} has natively")
    return _computing_in(torch.float32, f"as {where} has no native bfloat16" if auto else by_file)


def _computing_in(dtype: torch.dtype, why: str) -> WeightPolicy:
    return WeightPolicy(dtype, dtype, f"computes in {dtype_name(dtype)}, {why}")


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype's name in messages and recipes: ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def device_title(device: torch.device) -> str:
    """The device's name in messages: ``this CPU``, ``cuda:1``."""
    return "this CPU" if device.type == "cpu" else str(device)


def dtype_of(name: str | None) -> DTypeOption:
    """Return the dtype of a name in `NAMES`; "auto" and None unchanged. Raises BadRequest for another name."""
    if name is None or name == "auto":
        return cast(DTypeOption, name)
    if name not in NAMES:
        raise BadRequest(unknown_name("dtype", name, ("auto", *NAMES)))
    return NAMES[name]
