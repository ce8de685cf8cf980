"""What the commands of rows share: options, resumption, and the files of results."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.vs.measure import Row
from benchmarks.vs.progress import Progress, code_hash
from benchmarks.vs.report import Report, machine, versions

Lines = Callable[[Sequence[Row]], str]


def parser(name: str, text: str | None, only: Iterable[str], runs: int = 5) -> argparse.ArgumentParser:
    """A parser with the options that all have; ``only`` are the names of rows."""
    found = argparse.ArgumentParser(
        prog=f"python -m {name}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(only)
    found.add_argument("--only", choices=names, nargs="+", default=names)
    found.add_argument("--runs", type=int, default=runs)
    found.add_argument("--threads", type=int, default=torch.get_num_threads())
    found.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return found


def run(  # noqa: PLR0913, PLR0917
    options: argparse.Namespace,
    report: tuple[str, str, str],
    script: str,
    settings: dict[str, Any],
    measured: Callable[[Progress], Iterator[Row]],
    lines: Lines,
) -> int:
    """Measure rows one after the other and write them; ``report`` has title, what is measured, and the files' name."""
    settings = {
        **settings, "threads": options.threads, "versions": versions(), "machine": machine(),
        "code": code_hash(Path(script)),
    }  # fmt: skip
    title, about, stem = report
    written = Report(title, about, stem, settings, options, rows_as=lines)
    progress, rows = Progress(options.out / f"{stem}-{options.threads}.partial.json", settings), []
    try:
        with torch.no_grad():
            for row in measured(progress):
                row.command = written.command
                progress.save()
                rows.append(row)
                print(lines([row]).splitlines()[-1], flush=True)
    except KeyboardInterrupt:
        print(f"\n{lines(rows)}\ninterrupted; run the same command to resume from {progress.path}")
        return 130
    written.write(rows, [f"{row.what}: {row.note}" for row in rows if row.note])
    progress.done(row.what for row in rows)
    return 0
