"""Free and total memory of a device, and parsing of memory sizes."""

from __future__ import annotations

import os
import re
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kinema.schema import BadRequest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
UNKNOWN = 2**33
"""Assumed where the operating system does not report free memory."""


def unified(device: torch.device) -> bool:
    """Whether the device shares the host's memory: CPUs and Apple GPUs."""
    return device.type in ("cpu", "mps")


def free_bytes(device: str) -> int:
    """Return the bytes free on a device now. On a CPU: what the system reports, or a container's limit leaves.

    On a GPU this includes memory that torch's allocator caches. On an Apple GPU the limit is Metal's recommendation.
    """
    kind = device.partition(":")[0]
    if kind in ("cuda", "xpu"):
        import torch

        gpu = getattr(torch, kind)
        return int(gpu.mem_get_info(device)[0] + gpu.memory_reserved(device) - gpu.memory_allocated(device))
    if kind == "mps":
        import torch

        driver = torch.mps.driver_allocated_memory()
        cached = driver - torch.mps.current_allocated_memory()
        return torch.mps.recommended_max_memory() - driver + cached
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
        return min(int(line.split()[1]) * 1024, _container_free())
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return UNKNOWN


def total_bytes(device: str) -> int | None:
    """Return an accelerator's total bytes; None for a CPU, where a container may be limited to a part."""
    kind = device.partition(":")[0]
    if kind == "cpu":
        return None
    import torch

    return int(torch.mps.recommended_max_memory() if kind == "mps" else getattr(torch, kind).mem_get_info(device)[1])


def peak_bytes(device: str) -> int:
    """Return the peak bytes so far: allocated on a GPU, resident on a CPU (0 where the system does not report it).

    Apple's driver records no peak; its current allocation, which includes torch's cache, is close to it.
    """
    import torch

    kind = device.partition(":")[0]
    if kind in ("cuda", "xpu"):
        return int(getattr(torch, kind).max_memory_allocated(device))
    if kind == "mps":
        return torch.mps.driver_allocated_memory()
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _container_free(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes left under a container's limit, or 2**62 without one.

    The page cache counts as used there but is reclaimed before an allocation fails.
    """
    try:
        free = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return free + sum(int(stat.get(name, 0)) for name in ("inactive_file", "active_file"))
    except (OSError, ValueError):
        return 2**62


def held_bytes(tensors: Iterable[Tensor], device: str) -> int:
    """Return the bytes of the tensors on a device that are not counted as free there.

    Tensors in a file's memory map are excluded on Linux, since their pages can be reclaimed.
    """
    here = [x for x in tensors if x.device.type == device.partition(":")[0] and not x.is_meta]
    if not device.startswith("cpu"):
        return sum(x.nbytes for x in here)
    spans = sorted(_file_maps())
    starts = [start for start, _ in spans]

    def in_a_file(address: int) -> bool:
        at = bisect_right(starts, address) - 1
        return at >= 0 and address < spans[at][1]

    return sum(x.nbytes for x in here if not in_a_file(x.data_ptr()))


def _file_maps() -> Iterator[tuple[int, int]]:
    """Yield the address ranges of this process that map files."""
    maps = Path("/proc/self/maps")
    for line in maps.read_text().splitlines() if maps.exists() else ():
        addresses, *_, name = line.split(maxsplit=5)
        if name.startswith("/") and not name.startswith(("/dev/", "/memfd:")):
            start, end = addresses.split("-")
            yield int(start, 16), int(end, 16)


def parse_bytes(text: str) -> int:
    """Parse ``"8GiB"``, ``"8 G"``, ``"512MB"`` or plain bytes; all units are powers of 1024. Raises BadRequest."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text, re.IGNORECASE)
    amount = float(match[1]) * UNITS[match[2].lower()] if match else 0
    if amount < 1:
        raise BadRequest(f"memory is {text!r}; expected a size such as 8GiB or 512MiB")
    return int(amount)


def format_bytes(size: float) -> str:
    """Format a number of bytes: ``"1.50 GiB"`` or ``"96 MiB"``."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.0f} MiB"
