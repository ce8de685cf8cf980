"""Time of a step through the service, with events and previews, against the command line's without previews.

    python benchmarks/serve_overhead.py                                   # vdm/tiny at 128×128, one thread
    python benchmarks/serve_overhead.py --model svd/tiny --side 96

Runs alternate, so that other load meets both; each gives the time between its first and last step divided by their
number, as it reaches the client. Printed are the medians, and their ratio (goal: at most 1.03, with steps of at least a
second). On Linux the CPU time of all processes of a run is measured too: it depends less on other load.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import kinema
from kinema.client.service import Service
from kinema.events import Event, Preview, Step

STARTED = re.compile(r"serving on (http://\S+) ")


@dataclass(frozen=True)
class Run:
    """Wall-clock and CPU seconds of a step."""

    wall: float
    cpu: float


def cpu_of_tree(root: int) -> float:
    """CPU seconds so far of a process and its descendants; NaN where there is no /proc."""
    parents, spent = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields[1])
        spent[int(path.parent.name)] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    family, found = {root}, True
    while found:
        found = {pid for pid, parent in parents.items() if parent in family} - family
        family |= found
    return sum(spent.get(pid, 0.0) for pid in family) if spent else float("nan")


def per_step(at: list[tuple[float, float]]) -> Run:
    count = len(at) - 1
    return Run((at[-1][0] - at[0][0]) / count, (at[-1][1] - at[0][1]) / count)


def by_command_line(words: list[str], folder: Path, number: int) -> Run:
    command = [sys.executable, "-m", "kinema", "generate", *words, "--threads", "1", "--json-events"]
    process = subprocess.Popen([*command, "-o", str(folder / f"{number}.mp4")], stdout=subprocess.PIPE, text=True)
    at = []
    for line in process.stdout:
        if json.loads(line)["event"] == "step":
            at.append((time.perf_counter(), cpu_of_tree(process.pid)))
    if process.wait():
        raise SystemExit(f"the command line failed with {process.returncode}")
    return per_step(at)


def by_service(service: Service, options: dict, process: subprocess.Popen) -> tuple[Run, int]:
    at, previews = [], []

    def hear(event: Event) -> None:
        if isinstance(event, Step):
            at.append((time.perf_counter(), cpu_of_tree(process.pid)))
        elif isinstance(event, Preview):
            previews.append(event.index)

    service.generate("a red ball rolls right", on_event=hear, preview=True, **options)
    return per_step(at), len(previews)


def started(folder: Path, model: str) -> tuple[subprocess.Popen, str]:
    command = [sys.executable, "-m", "kinema", "serve", "--port", "0", "--folder", str(folder), "--model", model]
    process = subprocess.Popen([*command, "--threads", "1"], stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if found := STARTED.search(line):
            return process, found[1]
    raise SystemExit("the service did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vdm/tiny")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    options = {"steps": asked.steps, "seed": 1, "height": asked.side, "width": asked.side}
    words = ["a red ball rolls right", "-m", asked.model]
    words += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process, url = started(folder / "service", asked.model)
        try:
            service = kinema.connect(url)
            by_service(service, options | {"steps": 2}, process)  # loads the model
            lines, services, previews = [], [], 0
            for number in range(asked.rounds):
                lines.append(by_command_line(words, folder, number))
                run, count = by_service(service, options, process)
                services.append(run)
                previews += count
                print(
                    f"round {number + 1}: command line {lines[-1].wall:.3f} s, service {run.wall:.3f} s a step",
                    flush=True,
                )
        finally:
            process.terminate()
            process.wait()
    print(
        f"{asked.model} at {asked.side}×{asked.side}, {asked.steps} steps, {asked.rounds} rounds, "
        f"{previews} previews; medians:"
    )
    for what in ("wall", "cpu"):
        line, there = (median(getattr(run, what) for run in runs) for runs in (lines, services))
        print(f"{what:<5} command line {line:.3f} s, service {there:.3f} s a step: {there / line:.3f}×")


if __name__ == "__main__":
    main()
