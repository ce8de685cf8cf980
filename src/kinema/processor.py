"""What the CPU is and which arithmetic it has units for, as PyTorch or the system tells it."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

_UNITS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "amx_tile", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16"),
}


def told() -> dict[str, Any]:
    """The CPU's capabilities by PyTorch's names, from 2.11 on; empty before."""
    return dict(getattr(torch.cpu, "get_capabilities", dict)())


def has_units(dtype: torch.dtype) -> bool | None:
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
