"""Memory that is kept: page faults counted, not time."""

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
faults()
print(told, before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_what_a_step_frees_the_next_one_takes_without_a_page_fault() -> None:
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    told, before, after = done.stdout.split()
    assert told == "True"
    assert int(after) < int(before) / 10


def test_elsewhere_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from kinema import heap

    monkeypatch.setattr(sys, "platform", "darwin")
    assert not heap.keep()
