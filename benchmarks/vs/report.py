"""The files of results: a table with date, machine and command, and its values."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks.vs import measure
from benchmarks.vs.measure import Row
from benchmarks.vs.recorded import KINDS, PRODUCTS
from kinema import processor
from kinema.atomic import replacing


def command() -> str:
    """The command of this process, without folders."""
    name = sys.argv[0] if sys.argv[0].startswith("benchmarks.") else module_name()
    return " ".join(["python -m", name, *(shlex.quote(Path(w).name if "/" in w else w) for w in sys.argv[1:])])


def module_name() -> str:
    path = Path(sys.argv[0])
    parts = path.parent.name if path.stem == "__main__" else path.stem
    return f"benchmarks.{parts}"


@dataclass
class Report:
    """Where rows are written, and what is said above them."""

    title: str
    about: str
    stem: str
    """The last part of the files' names, after date and machine."""
    settings: dict[str, Any]
    """Rows of these settings share a file."""
    options: argparse.Namespace
    theirs: str = "diffusers"
    rows_as: Callable[[Sequence[Row]], str] | None = None
    """The table of rows, if they are no comparison of seconds or bytes."""
    command: str = field(default_factory=command)

    @property
    def path(self) -> Path:
        """The first file of this name that has no rows of other settings."""
        date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        name = f"{date}-{kind(machine(), self.options.threads)}-{self.stem}"
        for number in count(1):
            path = self.options.out / f"{name}{f'-{number}' if number > 1 else ''}.json"
            if not path.is_file() or _read(path).get("settings") == self.settings:
                break
        return path

    def write(self, rows: Sequence[Row], gaps: Sequence[str]) -> None:
        """Write the rows, after the rows of other commands of today with the same settings."""
        path = self.path
        before = [Row.from_json(row) for row in _read(path)["rows"]] if path.is_file() else []
        rows = [*(row for row in before if row.what not in {each.what for each in rows}), *rows]
        gaps = [gap for gap in gaps if not any(gap == f"{name}: skipped" for name in (row.what for row in rows))]
        commands = list(dict.fromkeys(row.command for row in rows))
        result = {
            "date": path.name[:10], "title": self.title, "about": self.about, "machine": machine(),
            "threads": self.options.threads, "commands": commands, "versions": versions(), "settings": self.settings,
            "rows": [row.to_json() for row in rows], "to be known": gaps,
        }  # fmt: skip
        text = self.page(rows, gaps, commands)
        self.options.out.mkdir(parents=True, exist_ok=True)
        for file, content in ((path, json.dumps(result, indent=2) + "\n"), (path.with_suffix(".md"), text)):
            with replacing(file) as part:
                part.write_text(content, encoding="utf-8")
        print(f"\n{text}\n{path}, .md")

    def page(self, rows: Sequence[Row], gaps: Sequence[str], commands: Sequence[str]) -> str:
        description = machine()
        units, libraries = ", ".join(description["units"]), ", ".join(map(" ".join, versions().items()))
        shown = self.rows_as(rows) if self.rows_as else table(rows, self.theirs)
        budgets = [f"\n{budget_table(row, self.theirs)}" for row in rows if row.budget]
        return "\n".join([
            f"# {self.title}, {self.path.name[:10]}", "",
            *(f"`{each}`  " for each in commands),
            f"{self.about}.",
            f"Machine: {description['processor']}, {description['cores']} cores, {units}; {libraries}.",
            "", shown, *budgets, "", "Not measured, or limited:", *(f"- {gap}" for gap in gaps), "",
        ])  # fmt: skip


def _read(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def line(row: Row) -> str:
    if not row.ratios:
        return f"{row.what}: {row.note}"
    text = f"{row.what}: diffusers {measure.spread(row.theirs)}, kinema {measure.spread(row.ours)} {row.unit}"
    text += "".join(f"; {side} at {share:.2f} of the attainable" for side, share in row.shares.items())
    return f"{text}; ratio {measure.spread(row.ratios)}" + ("" if row.goal is None else f", goal {row.goal:.2f}")


def table(rows: Sequence[Row], theirs: str) -> str:
    """Rows that were measured. A difference is shown of equal arithmetic; `benchmarks.errors` has that of bf16."""
    shares = any(row.shares for row in rows)
    head = f"| what | {theirs} | kinema | {theirs} / kinema | goal | difference |" + (
        f" share of the attainable: {theirs} | kinema | of the less |" if shares else ""
    )
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for row in rows:
        if not row.ratios:
            continue
        scale, unit = (2**20, "MiB") if row.unit == "bytes" else (1, "s")
        first, second = ([v / scale for v in side] for side in (row.theirs, row.ours))
        exact = row.difference is not None and "fp32" in row.what
        text = (
            f"| {row.what} | {measure.spread(first)} {unit} | {measure.spread(second)} {unit} | "
            f"**{measure.spread(row.ratios)}** | {'' if row.goal is None else f'≥ {row.goal:.2f}'} | "
            f"{f'{row.difference:.1e} σ' if exact else ''} |"
        )
        if shares:
            own = [f"{row.shares[side]:.2f}" if side in row.shares else "" for side in ("theirs", "ours")]
            text += f" {own[0]} | {own[1]} | {of_the_less(row)} |"
        lines.append(text)
    return "\n".join(lines)


def of_the_less(row: Row) -> str:
    """Kinema's share of the least attainable seconds of both sides: its own chunks and branches can cost some."""
    alone = row.alone
    return f"{min(alone.values()) / alone['ours'] * row.shares['ours']:.2f}" if "ours" in row.shares else ""


def budget_table(row: Row, theirs: str) -> str:
    """Seconds of one recorded call by kind, and what its products take alone."""
    head = f"{row.what}, one call | {theirs}, s | alone, s | GFLOP | GFLOP/s alone | kinema, s | alone, s | GFLOP | "
    lines = [f"| {head}GFLOP/s alone |", "|---" * 9 + "|"]
    for kind_ in ("all", *KINDS):
        cells = []
        for side in ("theirs", "ours"):
            each = row.budget[side]
            cells.append(f"{each['seconds'][kind_]:.3g}")
            if kind_ in PRODUCTS:
                rate = each["gflop/s alone"].get(kind_)
                cells += [f"{each['alone'][kind_]:.3g}", f"{each['operations'][kind_] / 1e9:.4g}"]
                cells.append("" if rate is None else f"{rate:.0f}")
            elif kind_ == "all":
                sums = (sum(each["alone"].values()), sum(each["operations"].values()) / 1e9)
                cells += [f"{sums[0]:.3g}", f"{sums[1]:.4g}", f"{sums[1] / sums[0]:.0f}" if sums[0] else ""]
            else:
                cells += ["", "", ""]
        lines.append(f"| {kind_} | {' | '.join(cells)} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    found = processor.describe()
    units = [n for n in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "neon", "sve", "bf16") if found.get(n)]
    return {
        "processor": f"{found.get('cpu_name', '')} {platform.machine()}".strip(),
        "cores": os.cpu_count(),
        "units": units,
        "system": platform.system(),
    }


def versions() -> dict[str, str]:
    import diffusers

    return {"torch": torch.__version__, "diffusers": diffusers.__version__, "python": platform.python_version()}


def kind(description: dict[str, Any], threads: int) -> str:
    """The machine's part of a file name."""
    finest = [n for n in ("amx_bf16", "avx512_bf16", "avx512_f", "avx2", "sve", "neon") if n in description["units"]]
    return f"cpu{threads}-{finest[0] if finest else platform.machine()}"
