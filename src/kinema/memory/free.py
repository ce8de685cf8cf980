"""How much memory there is, and how much somebody says may be used."""

from __future__ import annotations

import os
import re
from pathlib import Path

from kinema.schema import BadRequest

UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
UNKNOWN = 2**33
"""Taken where the system does not say."""


def free_bytes(device: str) -> int:
    """Bytes free on a device now. On a CPU: what the system, or a container's limit, says is available."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    told = Path("/proc/meminfo")
    if told.exists():
        line = next(line for line in told.read_text().splitlines() if line.startswith("MemAvailable"))
        return min(int(line.split()[1]) * 1024, _container_room())
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return UNKNOWN


def _container_room() -> int:
    """What a container's limit leaves; without one, more than any machine has."""
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        return int(limit.read_text()) - int(used.read_text())
    except (OSError, ValueError):
        return 2**62


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
