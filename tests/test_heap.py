"""Keeping and returning heap memory, measured in page faults and pages, not time."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

WORK = """
import resource, torch
from kinema import heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        kept = [torch.ones(16 << 20) for _ in range(2)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
told = heap.keep()
for _ in range(3):  # the heap grows to what they need, in one round or two
    faults()
print(told, before, faults())
"""


HELD = """
import torch
from kinema import heap

def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

blocks = [torch.ones(1 << 14) for _ in range(2048)]  # 128 MiB in blocks of 64 KiB
kept = blocks[::64]  # pieces of what is freed lie between blocks that are not
del blocks
before = held()
print(heap.give_back(), before, held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is supported")
def test_free_memory_between_blocks_returns_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    configured, before, after = done.stdout.split()
    assert configured == "True"
    assert int(before) - int(after) > 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is supported")
def test_steps_reuse_freed_memory_without_page_faults() -> None:
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    configured, before, after = done.stdout.split()
    assert configured == "True"
    assert int(after) < int(before) / 10


def test_other_c_libraries_are_not_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    from kinema import heap

    monkeypatch.setattr(sys, "platform", "darwin")
    assert not heap.keep()
    assert not heap.give_back()
