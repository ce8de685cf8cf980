"""The CPU and accelerators of this machine and their native precisions, as PyTorch reports them."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinema.schema import BadRequest
from kinema.values import quoted

DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d{1,3})?")
"""Supported devices; others, such as ``meta``, hold no data."""
HALF_PRECISIONS = (torch.bfloat16, torch.float16)
NO_FLOAT64 = ("mps", "xpu")
"""Device types without float64: Apple's GPUs, and some of Intel's."""
_MACOS = 14, 0
"""First macOS version with bfloat16 on Apple's GPUs."""
_AMPERE = 8
"""First major compute capability of NVIDIA GPUs with native bfloat16; PyTorch emulates it on older ones."""
_UNITS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "amx_tile", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16"),
}


def describe() -> dict[str, Any]:
    """Return the CPU's capabilities as PyTorch 2.11 or later reports them; empty before."""
    return dict(getattr(torch.cpu, "get_capabilities", dict)())


def is_native(dtype: torch.dtype) -> bool | None:
    """Whether the CPU has native matrix products in this 16-bit precision; None if PyTorch does not report it."""
    reported = describe()
    known = [bool(reported[name]) for name in _UNITS[dtype] if name in reported]
    return any(known) if known else None


def cpu_name() -> str:
    """Return the CPU's name from PyTorch 2.11 or later, else its vendor from the operating system; "" if unknown."""
    cpuinfo = Path("/proc/cpuinfo")
    if name := describe().get("cpu_name"):
        return str(name)
    if not cpuinfo.is_file():
        return platform.processor()
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


# ------------------------------------------------------------------------------------- devices


def accelerators() -> list[str]:
    """Return the names of the accelerators, the preferred one first: ``cuda:0``, ``cuda:1``, ``xpu:0``, ``mps``."""
    found = [f"{kind}:{i}" for kind in ("cuda", "xpu") for i in range(getattr(torch, kind).device_count())]
    return [*found, *(["mps"] if torch.backends.mps.is_available() else [])]


def device_of(name: str | torch.device | None) -> torch.device:
    """Return the device of this name; None selects the first accelerator, or the CPU without one.

    Raises BadRequest for a device that this machine lacks.
    """
    here = accelerators()
    if name is None:
        return torch.device(here[0].partition(":")[0] if here else "cpu")
    try:
        if not DEVICE.fullmatch(str(name)):
            raise ValueError
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError):
        expected = " or ".join(["cpu", *here])
        raise BadRequest(f"this machine has no device {quoted(str(name))}; expected {expected}") from None
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """Return the product name of the device."""
    if device.type == "cpu":
        return cpu_name() or "unknown CPU"
    return "Apple GPU" if device.type == "mps" else str(getattr(torch, device.type).get_device_name(device))


def is_native_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device supports this precision natively. 16-bit precisions of unknown CPUs count as unsupported."""
    if dtype == torch.float64:
        return device.type not in NO_FLOAT64
    if dtype not in HALF_PRECISIONS:
        return True
    if device.type == "cpu":
        return is_native(dtype) is True
    return dtype == torch.float16 or _has_bfloat16(device)


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= _AMPERE
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(*_MACOS)
    return bool(torch.xpu.get_device_properties(device).has_bfloat16_conversions)


def widest(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on a device without it."""
    return torch.float64 if is_native_on(device, torch.float64) else torch.float32


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to the device; float64 becomes float32 if the device lacks float64.

    Used for schedules and noise levels, which are computed on the CPU in float64.
    """
    return value.to(device, widest(device)) if value.dtype == torch.float64 else value.to(device)
