"""Measuring two things against each other on a machine that others use too: they alternate, and only ratios count."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinema import heap

Sides = dict[str, Callable[[], Any]]


@dataclass
class Row:
    """One comparison. Seconds or bytes of each side, run by run; ``ratio`` is theirs over ours: above 1 we are ahead.

    A run's two sides were measured one right after the other, so each run has a ratio of its own, and the row's is
    their median.
    """

    what: str
    unit: str = "s"
    theirs: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    difference: float | None = None
    """Largest difference between the two results, in standard deviations of theirs."""
    note: str = ""
    goal: float | None = None
    """What the ratio is to reach."""

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.theirs, self.ours, strict=False)]

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None

    def lacks(self, runs: int) -> bool:
        """Whether fewer pairs than so many were measured."""
        return len(self.ours) < runs

    def add(self, theirs: float, ours: float) -> None:
        """One pair, measured one right after the other."""
        self.theirs.append(theirs)
        self.ours.append(ours)

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Row:
        return cls(**{name: value for name, value in told.items() if name != "ratio"})

    def to_json(self) -> dict[str, Any]:
        told = {k: v for k, v in vars(self).items() if v not in (None, "", [])}
        return told | ({} if self.ratio is None else {"ratio": self.ratio})


class Clock:
    """Says how far a run is, and about how long it will still take."""

    def __init__(self, total: float) -> None:
        self.total, self.done, self.began = total, 0.0, time.monotonic()
        self.skipped = 0.0

    def pass_over(self, share: float) -> None:
        """Work that was done before."""
        self.skipped += share

    def tick(self, what: str, share: float = 1) -> None:
        self.done += share
        gone = time.monotonic() - self.began
        left = gone / self.done * max(0, self.total - self.skipped - self.done)
        line = f"[{self.skipped + self.done:.3g}/{self.total:g}] {what}: {gone:.0f} s gone, about {left:.0f} s left"
        print(line, file=sys.stderr, flush=True)


def alternate(row: Row, sides: Sides, runs: int, clock: Callable[[], float] = time.perf_counter) -> Iterator[None]:
    """Time both sides turn by turn, ``theirs`` first, until the row has so many runs; yields after each pair."""
    while row.lacks(runs):
        took = {}
        for name, call in sides.items():
            began = clock()
            call()
            took[name] = clock() - began
        row.add(**took)
        yield


def fresh(program: str, threads: int) -> float:
    """Seconds a Python program takes from the start of its process to the end of its last line."""
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", program + MARK], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, env=environment(threads)) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("done"):
                took = time.perf_counter() - began
                break
        else:
            raise RuntimeError(process.stderr.read().strip().splitlines()[-1])
        process.communicate()
    return took


MARK = '\nprint("done", flush=True)\n'


def environment(threads: int) -> dict[str, str]:
    path = [str(Path(p)) for p in sys.path if p]
    ours = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # pip compiles what it installs
    return ours | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(path)}


def peak_extra(call: Callable[[], Any]) -> int | None:
    """Bytes that a call takes beyond what its process held before: the kernel's own high-water mark (Linux only)."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists():
        return None

    def told(name: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024

    heap.give_back()  # what building the networks left free is neither side's
    before = told("VmRSS")
    try:
        clear.write_text("5")  # sets the mark to what is held now
    except OSError:
        return None
    call()
    return told("VmHWM") - before


def in_fresh_process(arguments: Sequence[str], threads: int) -> str:
    """The last line that `benchmarks.vs` prints with these arguments in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.vs", *arguments],
        capture_output=True,
        text=True,
        env=environment(threads),
        check=False,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    return done.stdout.strip().splitlines()[-1]


def spread(values: Sequence[float]) -> str:
    """The median, and the range in brackets."""
    return f"{statistics.median(values):.3g} [{min(values):.3g}, {max(values):.3g}]" if values else "–"
