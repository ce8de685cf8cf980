"""Facts about this machine for the command line. Its only module that imports torch, inside functions."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from kinema.schema import BadRequest

if TYPE_CHECKING:
    import torch

    from kinema.system import DTypeOption

CPU_UNITS = ("neon", "sve", "avx2", "avx512_f", "avx512_bf16", "amx_bf16", "bf16")
"""Vector instructions that decide how fast a CPU samples, as torch names them."""


def dtype(name: str | None) -> DTypeOption:
    """The torch dtype of ``fp32``, ``bf16`` or ``fp16``; ``auto`` and None unchanged."""
    if name is None or name == "auto":
        return cast("DTypeOption", name)
    from kinema.system.precision import dtype_of

    return dtype_of(name)


def dtypes() -> dict[str, str]:
    """Names of dtypes on the command line to torch's."""
    from kinema.system.precision import NAMES

    return {name: str(dtype).removeprefix("torch.") for name, dtype in NAMES.items()}


def device(name: str | None) -> str | None:
    """The device's name. Raises BadRequest if this machine has no such device."""
    if name is None:
        return None
    from kinema import processor

    processor.device_of(name)
    return name


def can_compile(name: str | None) -> bool:
    """Whether PyTorch finds a compiler for this device."""
    import torch

    from kinema.system.blocks import check_compiler

    try:
        check_compiler(torch.device(name or "cpu"))
    except (BadRequest, RuntimeError):  # RuntimeError: not a device
        return False
    return True


def set_threads(count: int | None) -> None:
    if count is None:
        return
    if not 1 <= count <= 1024:
        raise BadRequest(f"--threads is {count}; expected 1 to 1024")
    import torch

    torch.set_num_threads(count)


def free_memory(device_name: str) -> int:
    """Free bytes on the device now (CPU: available memory as reported by the system)."""
    from kinema.memory.free import free_bytes

    return free_bytes(device_name)


def free_disk(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def versions() -> dict[str, str]:
    """Software versions and processor, under the names a recipe records (`kinema.provenance.recipe`)."""
    import torch

    return {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}


def facts() -> dict[str, str]:
    """torch's version, threads and vector instructions, as text."""
    import torch

    from kinema import processor

    capabilities = processor.describe()
    units = [name for name in CPU_UNITS if capabilities.get(name) is True]
    return {
        "torch": torch.__version__,
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "cpu": ", ".join(units) or "none that speeds up sampling",
    }


def devices() -> list[str]:
    """Names of the CPU and the accelerators."""
    from kinema import processor

    return ["cpu", *processor.accelerators()]


def about_device(name: str) -> tuple[str, bool]:
    """(text on the device's name, memory, native precisions and the default one, whether it runs every operator that
    models need).
    """
    import torch

    from kinema import processor
    from kinema.memory.free import format_bytes, free_bytes, total_bytes

    device = processor.device_of(name)
    total = total_bytes(name)
    memory = f"{format_bytes(free_bytes(name))} free" + ("" if total is None else f" of {format_bytes(total)}")
    parts = [f"{processor.device_name(device)}, {memory}", _native(device), _precision(device)]
    if not processor.is_native_on(device, torch.float64):
        parts.append("it lacks float64, so schedules are computed on the CPU and long sums in float32")
    missing = [] if device.type == "cpu" else lacking(device)
    if missing:
        instead = "; set PYTORCH_ENABLE_MPS_FALLBACK=1 to run them on the CPU" if device.type == "mps" else ""
        parts.append(f"PyTorch lacks operators for it that some models need: {', '.join(missing)}{instead}")
    return "; ".join(parts), not missing


def _native(device: torch.device) -> str:
    """Which half precisions are native: ``this CPU has no native bfloat16 or float16``."""
    from kinema import processor
    from kinema.system import device_title, dtype_name

    has = [dtype_name(kind) for kind in processor.HALF_PRECISIONS if processor.is_native_on(device, kind)]
    lacks = [dtype_name(kind) for kind in processor.HALF_PRECISIONS if dtype_name(kind) not in has]
    parts = [f"native {' and '.join(has)}"] if has else []
    parts += [f"no native {' or '.join(lacks)}"] if lacks else []
    if device.type == "cpu" and not any(processor.is_native(kind) is not None for kind in processor.HALF_PRECISIONS):
        return f"PyTorch does not report whether {device_title(device)} has native {' or '.join(lacks)}"
    return f"{device_title(device)} has {' but '.join(parts)}"


def _precision(device: torch.device) -> str:
    """The precision models compute in on the device: by default, and with ``--dtype auto``."""
    import torch

    from kinema.system import default_policy, dtype_name

    def text(*, auto: bool) -> str:
        files: dict[str, list[str]] = {}
        for stored in (torch.float16, torch.bfloat16, torch.float32):
            files.setdefault(dtype_name(default_policy(device, stored, auto=auto).computed), []).append(
                dtype_name(stored)
            )
        if len(files) == 1:
            return next(iter(files))
        if all(stored == [computed] for computed, stored in files.items()):
            return "the precision of their files"
        return ", ".join(f"{computed} for {' and '.join(stored)} files" for computed, stored in files.items())

    return f"models compute in {text(auto=False)}, and with --dtype auto in {text(auto=True)}"


def probes() -> dict[str, Callable[[torch.device], Any]]:
    """Operators that models need and some accelerators lack, each as a small call."""
    import torch
    from torch.nn import functional as F

    def ones(*shape: int) -> Callable[[torch.device], torch.Tensor]:
        return lambda device: torch.ones(shape, device=device)

    clip, image, square = ones(1, 1, 2, 4, 4), ones(1, 1, 4, 4), ones(1, 2, 2)
    grid = ones(1, 4, 4, 2)
    return {
        "attention": lambda on: F.scaled_dot_product_attention(square(on), square(on), square(on)),
        "conv3d": lambda on: F.conv3d(clip(on), ones(1, 1, 1, 1, 1)(on)),
        "group_norm": lambda on: F.group_norm(clip(on), 1),
        "max_pool3d": lambda on: F.max_pool3d(clip(on), 2),
        "avg_pool3d": lambda on: F.avg_pool3d(clip(on), 2),
        "grid_sample": lambda on: F.grid_sample(image(on), grid(on), padding_mode="border", align_corners=False),
        "bicubic": lambda on: F.interpolate(image(on), scale_factor=2, mode="bicubic"),
        "fft": lambda on: torch.fft.ifftn(torch.fft.fftn(clip(on), dim=(2, 3, 4)), dim=(2, 3, 4)),
        "solve": lambda on: torch.linalg.solve_ex(torch.eye(2, device=on), square(on)[0]),
    }


def lacking(device: torch.device) -> list[str]:
    """Names of the operators in `probes` that fail on the device."""
    missing = []
    for name, probe in probes().items():
        try:
            probe(device)
        except (NotImplementedError, RuntimeError, TypeError):
            missing.append(name)
    return missing


def bf16_speed(side: int = 768) -> float:
    """Speed of a bf16 matrix product over an fp32 one on the CPU, measured now. ``side``: of the square matrices."""
    import time

    import torch

    seconds = {}
    for kind in (torch.float32, torch.bfloat16):
        a = torch.randn(side, side).to(kind)
        a @ a
        began = time.perf_counter()
        for _ in range(5):
            a @ a
        seconds[kind] = time.perf_counter() - began
    return seconds[torch.float32] / seconds[torch.bfloat16]


def codecs() -> dict[str, bool]:
    """Which of the encoders and decoders that kinema uses are in this PyAV build."""
    import av

    names = {"libx264": "w", "h264": "r", "gif": "w", "webp": "r", "vp9": "r", "hevc": "r"}
    return {f"{name} ({'write' if mode == 'w' else 'read'})": _has(av, name, mode) for name, mode in names.items()}


def _has(av: Any, name: str, mode: str) -> bool:
    try:
        av.codec.Codec(name, mode)
    except ValueError:
        return False
    return True
