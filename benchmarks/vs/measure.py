"""Compare two implementations on a shared machine: they alternate, and only ratios count."""

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

STATUS = Path("/proc/self/status")
Sides = dict[str, Callable[[], Any]]


@dataclass
class Row:
    """One comparison, with seconds or bytes of diffusers (``theirs``) and Kinema (``ours``) for each run.

    A ratio is diffusers over Kinema: above 1, Kinema is better. The two sides of a run are measured one right after the
    other, so each run has its own ratio, and the row's is their median.
    """

    what: str
    unit: str = "s"
    theirs: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    difference: float | None = None
    """Largest difference between the two results, in standard deviations of diffusers' result."""
    note: str = ""
    goal: float | None = None
    """Target for the ratio."""
    command: str = ""
    """The command that measured it."""
    budget: dict[str, Any] = field(default_factory=dict)
    """Of each side, what `attainable.budget` returns."""

    options: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of every option of a choice, by name."""
    chosen: str = ""
    """The option that the package chooses."""

    @property
    def alone(self) -> dict[str, float]:
        """Seconds of each side's own products, convolutions and attention alone."""
        return {side: sum(each["alone"].values()) for side, each in self.budget.items()}

    @property
    def shares(self) -> dict[str, float]:
        """Share of what is attainable, of each side: the seconds alone over the median of the measured ones."""
        measured = {"theirs": self.theirs, "ours": self.ours}
        return {side: alone / statistics.median(measured[side]) for side, alone in self.alone.items() if measured[side]}

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.theirs, self.ours, strict=False)]

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None

    def lacks(self, runs: int) -> bool:
        """Whether fewer pairs than ``runs`` were measured."""
        return len(self.ours) < runs

    def add(self, theirs: float, ours: float) -> None:
        """Add one pair, measured one right after the other."""
        self.theirs.append(theirs)
        self.ours.append(ours)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Row:
        return cls(**{name: value for name, value in data.items() if name not in ("ratio", "shares")})

    def to_json(self) -> dict[str, Any]:
        data = {k: v for k, v in vars(self).items() if v not in (None, "", [], {})}
        data |= {"shares": self.shares} if self.shares else {}
        return data | ({} if self.ratio is None else {"ratio": self.ratio})


class Clock:
    """Prints the progress of a run and the estimated time left."""

    def __init__(self, total: float) -> None:
        self.total, self.done, self.began = total, 0.0, time.monotonic()
        self.skipped = 0.0

    def skip(self, share: float) -> None:
        """Count work that was done before."""
        self.skipped += share

    def tick(self, what: str, share: float = 1) -> None:
        self.done += share
        elapsed = time.monotonic() - self.began
        left = elapsed / self.done * max(0, self.total - self.skipped - self.done)
        line = (
            f"[{self.skipped + self.done:.3g}/{self.total:g}] {what}: {elapsed:.0f} s elapsed, about {left:.0f} s left"
        )
        print(line, file=sys.stderr, flush=True)


def alternate(row: Row, sides: Sides, runs: int, clock: Callable[[], float] = time.perf_counter) -> Iterator[None]:
    """Time both sides alternately, ``theirs`` first, until the row has ``runs`` pairs; yields after each pair."""
    while row.lacks(runs):
        took = {}
        for name, call in sides.items():
            began = clock()
            call()
            took[name] = clock() - began
        row.add(**took)
        yield


def fresh(program: str, threads: int) -> float:
    """Seconds that a Python program takes from process start to the end of its last line."""
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
    variables = {
        k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"
    }  # pip compiles installed packages to bytecode
    return variables | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(path)}


def peak_extra(call: Callable[[], Any]) -> int | None:
    """Peak memory of a call beyond what the process held before, from the kernel's high-water mark (Linux only)."""
    if not STATUS.exists():
        return None
    heap.give_back()  # exclude memory freed after building the networks
    before = resident()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the mark to current usage
    except OSError:
        return None
    call()
    return resident("VmHWM") - before


def resident(name: str = "VmRSS") -> int:
    """Bytes of this process in memory (Linux only); "VmHWM": at most so far."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def in_fresh_process(arguments: Sequence[str], threads: int, module: str = "benchmarks.vs") -> str:
    """The last line printed by a module with these arguments in a new process."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        env=environment(threads),
        check=False,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no error output"])[-1])
    return done.stdout.strip().splitlines()[-1]


def spread(values: Sequence[float]) -> str:
    """The median, and the range in brackets."""
    return f"{statistics.median(values):.3g} [{min(values):.3g}, {max(values):.3g}]" if values else "–"
