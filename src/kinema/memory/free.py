"""How much memory there is, and how much somebody says may be used."""

from __future__ import annotations

import os
import re
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
"""Taken where the system does not say."""


def unified(device: torch.device) -> bool:
    """Whether the device's memory is the host's: of a CPU, and of Apple's GPUs."""
    return device.type in ("cpu", "mps")


def free_bytes(device: str) -> int:
    """Bytes free on a device now. On a CPU: what the system, or a container's limit, says is available.

    On a GPU what torch keeps of tensors that are gone is free too. On Apple's, which share the host's memory, as much
    may be used as Metal recommends.
    """
    kind = device.partition(":")[0]
    if kind in ("cuda", "xpu"):
        import torch

        gpu = getattr(torch, kind)
        return int(gpu.mem_get_info(device)[0] + gpu.memory_reserved(device) - gpu.memory_allocated(device))
    if kind == "mps":
        import torch

        driver = torch.mps.driver_allocated_memory()
        kept = driver - torch.mps.current_allocated_memory()
        return torch.mps.recommended_max_memory() - driver + kept
    told = Path("/proc/meminfo")
    if told.exists():
        line = next(line for line in told.read_text().splitlines() if line.startswith("MemAvailable"))
        return min(int(line.split()[1]) * 1024, _container_room())
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return UNKNOWN


def total_bytes(device: str) -> int | None:
    """Bytes that an accelerator has; None for a CPU, of which a container may have a part."""
    kind = device.partition(":")[0]
    if kind == "cpu":
        return None
    import torch

    return int(torch.mps.recommended_max_memory() if kind == "mps" else getattr(torch, kind).mem_get_info(device)[1])


def _container_room(group: Path = Path("/sys/fs/cgroup")) -> int:
    """What a container's limit leaves; without one, more than any machine has.

    Pages of files count as used there, but are given back before anything fails.
    """
    try:
        room = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
        told = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return room + sum(int(told.get(name, 0)) for name in ("inactive_file", "active_file"))
    except (OSError, ValueError):
        return 2**62


def held_bytes(tensors: Iterable[Tensor], device: str) -> int:
    """Bytes of tensors that are on a device and lack from what is free there.

    What lies in the memory map of a file does not: its pages are counted as free (Linux, which tells the maps).
    """
    here = [x for x in tensors if x.device.type == device.partition(":")[0] and not x.is_meta]
    if not device.startswith("cpu"):
        return sum(x.nbytes for x in here)
    spans = sorted(_of_files())
    starts = [start for start, _ in spans]

    def in_a_file(address: int) -> bool:
        at = bisect_right(starts, address) - 1
        return at >= 0 and address < spans[at][1]

    return sum(x.nbytes for x in here if not in_a_file(x.data_ptr()))


def _of_files() -> Iterator[tuple[int, int]]:
    """The stretches of this process's addresses that are maps of files."""
    maps = Path("/proc/self/maps")
    for line in maps.read_text().splitlines() if maps.exists() else ():
        place, *_, name = line.split(maxsplit=5)
        if name.startswith("/") and not name.startswith(("/dev/", "/memfd:")):
            start, end = place.split("-")
            yield int(start, 16), int(end, 16)


def parse_bytes(text: str) -> int:
    """``"8GiB"``, ``"8 G"``, ``"512MB"`` or plain bytes; a kilobyte is 1024 bytes, however it is written."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text, re.IGNORECASE)
    amount = float(found[1]) * UNITS[found[2].lower()] if found else 0
    if amount < 1:
        raise BadRequest(f"memory is {text!r}; expected an amount such as 8GiB or 512MiB")
    return int(amount)


def gib(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.0f} MiB"
