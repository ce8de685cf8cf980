"""What the CPU and the accelerators of this machine are and which precisions they have natively, as PyTorch tells."""

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
"""Devices that hold numbers: PyTorch has others (``meta``) that hold none."""
HALVES = (torch.bfloat16, torch.float16)
NO_FLOAT64 = ("mps", "xpu")
"""Apple's GPUs have no float64, and of Intel's not all have it."""
_MACOS = 14, 0
"""From which on Apple's GPUs have bfloat16."""
_AMPERE = 8
"""The generation of NVIDIA's GPUs from which on they have bfloat16; before, PyTorch emulates it."""
_UNITS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "amx_tile", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16"),
}


def told() -> dict[str, Any]:
    """The CPU's capabilities by PyTorch's names, from 2.11 on; empty before."""
    return dict(getattr(torch.cpu, "get_capabilities", dict)())


def is_native(dtype: torch.dtype) -> bool | None:
    """Whether the CPU multiplies matrices of halves in units of its own; None where PyTorch does not tell."""
    here = told()
    known = [bool(here[name]) for name in _UNITS[dtype] if name in here]
    return any(known) if known else None


def maker() -> str:
    """The processor's name or its maker's, as far as it is told: by PyTorch from 2.11 on, else by the system."""
    cpuinfo = Path("/proc/cpuinfo")
    if name := told().get("cpu_name"):
        return str(name)
    if not cpuinfo.is_file():
        return platform.processor()
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


# ------------------------------------------------------------------------------------- devices


def accelerators() -> list[str]:
    """The accelerators by name, the preferred one first: ``cuda:0``, ``cuda:1``, ``xpu:0``, ``mps``."""
    found = [f"{kind}:{i}" for kind in ("cuda", "xpu") for i in range(getattr(torch, kind).device_count())]
    return [*found, *(["mps"] if torch.backends.mps.is_available() else [])]


def device_of(name: str | torch.device | None) -> torch.device:
    """The device of this name; None is the first accelerator, or the CPU where there is none.

    Raises BadRequest for a device that is not here.
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


def title(device: torch.device) -> str:
    """What the device is called by its maker."""
    if device.type == "cpu":
        return maker() or "a CPU of an unknown maker"
    return "Apple GPU" if device.type == "mps" else str(getattr(torch, device.type).get_device_name(device))


def native(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device computes in this precision natively. A CPU of which nothing is told has no halves."""
    if dtype == torch.float64:
        return device.type not in NO_FLOAT64
    if dtype not in HALVES:
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
    """The precision for sums that want float64: float32 on a device that has none."""
    return torch.float64 if native(device, torch.float64) else torch.float32


def moved(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device; a float64 one becomes float32 where the device has no float64.

    Schedules and levels are computed on the CPU in float64; networks are told of them.
    """
    return value.to(device, widest(device)) if value.dtype == torch.float64 else value.to(device)
