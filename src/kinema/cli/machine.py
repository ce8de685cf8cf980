"""What the command line asks of the machine; the one module of it that reaches for torch, when called."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema import registry
from kinema.bounds import quoted
from kinema.schema import BadRequest

if TYPE_CHECKING:
    import torch

TOLD_UNITS = ("neon", "sve", "avx2", "avx512_f", "avx512_bf16", "amx_bf16", "bf16")
"""Vector units that decide how fast a CPU samples, as torch names them."""
DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d{1,3})?")
"""Devices that hold numbers: torch has others (``meta``) that hold none."""
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def dtype(name: str | None) -> torch.dtype | None:
    """``fp32``, ``bf16`` or ``fp16`` as torch calls it."""
    if name is None:
        return None
    if name not in DTYPES:
        raise BadRequest(registry.unknown("dtype", name, DTYPES))
    import torch

    return getattr(torch, DTYPES[name])


def device(name: str | None) -> str | None:
    """The device's name, refused where this machine has no such device."""
    if name is None:
        return None
    import torch

    try:
        if not DEVICE.fullmatch(name):
            raise ValueError
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError):
        have = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            have.append("mps")
        raise BadRequest(f"there is no device {quoted(name)} here; expected one of {', '.join(have)}") from None
    return name


def can_compile(name: str | None) -> bool:
    """Whether PyTorch finds a compiler for this device here."""
    import torch

    from kinema.system.blocks import check_compiler

    try:
        check_compiler(torch.device(name or "cpu"))
    except (BadRequest, RuntimeError):  # or it is no device
        return False
    return True


def set_threads(count: int | None) -> None:
    if count is None:
        return
    if not 1 <= count <= 1024:
        raise BadRequest(f"--threads is {count}; expected 1 to 1024")
    import torch

    torch.set_num_threads(count)


def parameters(family: Any, config: Any) -> tuple[int, int]:
    """(parameters, tensors) of a family's network, counted on the meta device: no memory is taken."""
    counted = parts(family, config).values()
    return sum(part["parameters"] for part in counted), sum(part["tensors"] for part in counted)


def parts(family: Any, config: Any) -> dict[str, dict[str, int]]:
    """The same of each module at the top of the network (``unet``, ``vae``), and of what lies beside them."""
    from kinema.nn.hollow import hollow

    with hollow():
        model = family.build(config)
    numbers = {name: p.numel() for name, p in model.named_parameters()}
    counted: dict[str, dict[str, int]] = {}
    for name in model.state_dict():
        top = name.partition(".")[0]
        part = counted.setdefault(top, {"parameters": 0, "tensors": 0})
        part["tensors"] += 1
        part["parameters"] += numbers.get(name, 0)
        if ".motion_modules." in name and name in numbers:
            part["motion_parameters"] = part.get("motion_parameters", 0) + numbers[name]
    return counted


def free_memory(device_name: str) -> int:
    """Bytes that are free on the device now (CPU: what the system says is available)."""
    from kinema.memory.free import free_bytes

    return free_bytes(device_name)


def peak_memory(device_name: str) -> int:
    """Peak bytes so far: allocated on a GPU, resident on a CPU (0 where the system does not say)."""
    import torch

    if device_name.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device_name)
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_disk(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def versions() -> dict[str, str]:
    """What a recipe records of the software and the processor, as `kinema.provenance.recipe` names it."""
    import torch

    return {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}


def count_calls(module: Any) -> tuple[list[int], Any]:
    """(a counter of the module's forward calls, the handle whose ``remove()`` ends the counting)."""
    calls = [0]

    def count(*_told: Any) -> None:
        calls[0] += 1

    return calls, module.register_forward_hook(count)


def facts() -> dict[str, str]:
    """torch's version, threads, devices and vector units, as a person reads them."""
    import torch

    from kinema import processor

    told = processor.told()
    units = [name for name in TOLD_UNITS if told.get(name) is True]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        gpus.append("Apple GPU (mps)")
    return {
        "torch": torch.__version__,
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "cpu": ", ".join(units) or "of no kind that matters here",
        "gpu": ", ".join(gpus) or "none; the CPU is used",
    }


def bf16_speed(side: int = 768) -> float:
    """How many times faster a bf16 matrix product is than an fp32 one on the CPU, timed now."""
    import time

    import torch

    took = {}
    for kind in (torch.float32, torch.bfloat16):
        a = torch.randn(side, side).to(kind)
        a @ a
        began = time.perf_counter()
        for _ in range(5):
            a @ a
        took[kind] = time.perf_counter() - began
    return took[torch.float32] / took[torch.bfloat16]


def codecs() -> dict[str, bool]:
    """Which of the encoders and decoders that kinema uses this PyAV carries."""
    import av

    names = {"libx264": "w", "h264": "r", "gif": "w", "webp": "r", "vp9": "r", "hevc": "r"}
    return {f"{name} ({'write' if mode == 'w' else 'read'})": _has(av, name, mode) for name, mode in names.items()}


def _has(av: Any, name: str, mode: str) -> bool:
    try:
        av.codec.Codec(name, mode)
    except ValueError:
        return False
    return True
