"""In which precision a model computes, why, and how its weights are held: the one place that decides.

A GPU runs a model in the half precision of its own file. A CPU computes in float32 unless it is asked for another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kinema import processor
from kinema.processor import HALVES
from kinema.schema import BadRequest
from kinema.values import quoted

Asked = torch.dtype | Literal["auto"] | None
"""A precision; "auto", bfloat16 where the device has it natively; or None, what the model's file has on an accelerator
and float32 on a CPU."""
PRECISIONS = (torch.float32, *HALVES, torch.float64)


@dataclass(frozen=True)
class WeightPolicy:
    """How a model's weights are held, from its file to the layers that compute with them.

    A weight lies in its file *as stored*, and may *wait* there or in the host's memory, until it is *ready* on the
    device: rounded to ``precision``, LoRAs merged, cast to ``computed``. `ready` is the one way there, for networks in
    memory as a whole and for weights that take turns; quantised weights would be one more step of it.
    """

    precision: torch.dtype = torch.float32
    """What weights are rounded to. Recipes record it."""
    computed: torch.dtype = torch.float32
    """What the network computes in: ``precision``, or float32 where that cannot be computed in well."""
    note: str = ""
    """Why, in one sentence; empty where there is nothing to say."""

    def ready(
        self,
        weight: Tensor,
        device: torch.device,
        *,
        merge: Callable[[Tensor], Tensor] | None = None,
        like: Tensor | None = None,
    ) -> Tensor:
        """A weight as stored, or as it waits, as the network computes with it on the device.

        ``merge`` adds LoRAs to the rounded weight, in float32. The result has the order in memory of ``like``.
        """
        if weight.is_floating_point():
            if merge is not None or self.precision != self.computed:  # else rounding and casting are one
                weight = weight.to(self.precision)
            if merge is not None:
                weight = merge(weight)
            if like is None:
                return weight.to(device, self.computed)
        if like is None or (weight.dtype, weight.device, weight.stride()) == (like.dtype, device, like.stride()):
            return weight.to(device)
        return torch.empty_like(like, device=device).copy_(weight, non_blocking=weight.is_pinned())

    def placed(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model with all of its weights and buffers ready on the device."""
        return model._apply(lambda tensor: self.ready(tensor, device))

    def bytes(self, count: int) -> int:
        """Bytes of so many weights when they are ready."""
        return count * self.computed.itemsize


def policy_for(dtype: torch.dtype, device: torch.device, *, fits_float16: bool = True) -> WeightPolicy:
    """The policy for a precision that somebody asks for. Raises BadRequest for one that the device does not have.

    The network computes in float32 where a CPU has no native halves, in which a product takes several times as long
    and is less exact, and where a model leaves float16's range (``Defaults.fits_float16``).
    """
    if dtype not in PRECISIONS:
        raise BadRequest(f"dtype is {quoted(str(dtype))}; expected {', '.join(map(name_of, PRECISIONS))} or auto")
    name, what = name_of(dtype), described(device)
    if dtype == torch.float64 and not processor.native(device, dtype):
        raise BadRequest(f"{what} has no float64; ask for float32, bfloat16 or float16")
    how = f"weights are rounded to {name}, and the network computes in float32"
    if dtype == torch.float16 and not fits_float16:
        return WeightPolicy(dtype, torch.float32, f"this model leaves float16's range: {how}")
    if device.type == "cpu" and dtype in HALVES and processor.is_native(dtype) is False:
        return WeightPolicy(dtype, torch.float32, f"{what} has no native {name}: {how}")
    return WeightPolicy(dtype, dtype)


def chosen(
    device: torch.device, stored: torch.dtype | None, *, auto: bool = False, fits_float16: bool = True
) -> WeightPolicy:
    """The policy where no precision is asked for, or "auto". ``stored`` is the file's; None is an untrained model.

    A float32 file stays in float32 unless "auto" is asked for: nobody has said that halves are enough for it.
    """
    bf16, what = processor.native(device, torch.bfloat16), described(device)
    if device.type == "cpu":
        if auto and bf16:
            return _same(torch.bfloat16, f"which {what} has natively")
        return WeightPolicy(note=f"computes in float32: {what} has no native bfloat16" if auto else "")
    own = "as the model is untrained" if stored is None else f"as its weights are stored in {name_of(stored)}"
    if stored == torch.float16 and fits_float16:
        return _same(torch.float16, own)
    why = f"{own}, whose range this model leaves" if stored == torch.float16 else own
    if stored is not None and stored.itemsize <= torch.bfloat16.itemsize:
        return _same(torch.bfloat16, why) if bf16 else _same(torch.float32, f"{why}, and {what} has no native bfloat16")
    if auto and bf16:
        return _same(torch.bfloat16, f"which {what} has natively")
    return _same(torch.float32, f"as {what} has no native bfloat16" if auto else own)


def _same(dtype: torch.dtype, why: str) -> WeightPolicy:
    return WeightPolicy(dtype, dtype, f"computes in {name_of(dtype)}, {why}")


def name_of(dtype: torch.dtype) -> str:
    """As people and recipes say it: ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def described(device: torch.device) -> str:
    """The device in a sentence: ``this CPU``, ``cuda:1``."""
    return "this CPU" if device.type == "cpu" else str(device)
