"""Kinema beside diffusers: the same weights, the same numbers, alternating runs in one process.

    python benchmarks/vs_diffusers.py --family svd               # about 15 minutes on two quiet cores
    python benchmarks/vs_diffusers.py --family svd --only step --runs 3
    python benchmarks/vs_diffusers.py --family svd --compile     # compiling takes minutes more

Each side runs a guided step as its own pipeline does: diffusers with both halves of guidance in one batch, Kinema
with one after the other. Before anything is timed, both results are compared. What is measured: a guided step and the
decoding of a clip (seconds), peak extra memory of the decoding (a fresh process a run), and a cold start (process
start, imports, loading a folder of 500 MB, one step; fresh processes). A ratio is theirs over ours; only ratios of one
run mean anything on a machine that is shared. Ctrl-C keeps what was measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import vs_measure as measure
from vs_measure import Clock, Row
from vs_pairs import PAIRS, Pair, Work

from kinema.atomic import replacing
from kinema.system import arithmetic

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WHAT = ("step", "decode", "memory", "cold")
SAME = {"fp32": 1e-3, "bf16": 0.5}
"""Largest difference, in standard deviations, up to which results count as the same numbers."""
GOALS = {("step", "fp32"): 1.3, ("step", "bf16"): 1.35, ("decode", "fp32"): 1 / 0.6, ("decode", "bf16"): 1 / 0.7,
         ("memory", "fp32"): 1 / 0.6, ("memory", "bf16"): 1 / 0.6, ("cold", ""): 2.0}  # fmt: skip


def main() -> int:
    options = read_options()
    torch.set_num_threads(options.threads)
    pair: Pair = PAIRS[options.family]()
    if options.memory_of:
        print(memory_of(pair, *options.memory_of.split(",")))
        return 0
    rows: list[Row] = []
    stopped = ""
    try:
        for row in measured(pair, options, Clock(steps_in(options))):
            rows.append(row)
            print(line(row), flush=True)
    except KeyboardInterrupt:
        stopped = "interrupted: what follows was not measured"
    write(pair, rows, options, stopped)
    return 130 if stopped else 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=sorted(PAIRS), default="svd")
    parser.add_argument("--runs", type=int, default=5, help="alternating runs of each comparison")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=sorted(DTYPES), nargs="+", default=list(DTYPES))
    parser.add_argument("--only", choices=WHAT, nargs="+", default=list(WHAT))
    parser.add_argument("--compile", action="store_true", help="also with torch.compile (minutes of compiling)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args()


def steps_in(options: argparse.Namespace) -> int:
    timed = sum(what in options.only for what in ("step", "decode", "memory")) * len(options.dtype) * options.runs
    return timed + ("cold" in options.only) * options.runs


def measured(pair: Pair, options: argparse.Namespace, clock: Clock) -> Iterator[Row]:
    """Every row, as soon as it stands."""
    with torch.no_grad():
        for dtype in options.dtype:
            if "step" in options.only:
                yield from timed("step", dtype, pair.step(DTYPES[dtype], options.compile), options, clock)
            if "decode" in options.only:
                yield from timed("decode", dtype, pair.decode(DTYPES[dtype]), options, clock)
            if "memory" in options.only:
                yield peaks(pair, dtype, options, clock)
        if "cold" in options.only:
            yield cold_start(pair, options, clock)


def timed(what: str, dtype: str, works: dict[str, Work], options: argparse.Namespace, clock: Clock) -> Iterator[Row]:
    for name, work in works.items():
        row = Row(f"{name}, {dtype}", goal=GOALS[what, dtype] if name == what else None)
        theirs, ours = work.theirs().float(), work.ours().float()  # also warms both
        row.difference = float((theirs - ours).abs().max() / theirs.std())
        if row.difference > SAME[dtype]:
            row.note = "not the same numbers: not timed"
            yield row
            continue
        try:
            for _ in measure.alternate(row, {"theirs": work.theirs, "ours": work.ours}, options.runs):
                clock.tick(row.what)
        except KeyboardInterrupt:
            row.note = f"interrupted after {len(row.ours)} of {options.runs} runs"
            print(line(row))
            raise
        yield row


def peaks(pair: Pair, dtype: str, options: argparse.Namespace, clock: Clock) -> Row:
    """Peak extra memory of one decoding, each in a process of its own."""
    row = Row(f"decode, peak extra memory, {dtype}", unit="bytes", goal=GOALS["memory", dtype])
    for _ in range(options.runs):
        for side in ("theirs", "ours"):
            told = ["--family", pair.name, "--memory-of", f"{side},{dtype}", "--threads", str(options.threads)]
            size = measure.in_fresh_process(told, options.threads)
            if size == "None":
                row.note = "not measured: this system does not tell a process its high-water mark"
                return row
            getattr(row, side).append(float(size))
        clock.tick(row.what)
    return row


def memory_of(pair: Pair, side: str, dtype: str) -> int | None:
    work = pair.decode(DTYPES[dtype])["decode"]
    with torch.no_grad():
        return measure.peak_extra(getattr(work, side))


def cold_start(pair: Pair, options: argparse.Namespace, clock: Clock) -> Row:
    row = Row("cold start: process, imports, 500 MB, one step", goal=GOALS["cold", ""])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        pair.folder(folder)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        row.note = f"a folder of {size / 1e6:.0f} MB, read before (in the page cache)"
        try:
            for run in range(options.runs + 1):
                for side in ("theirs", "ours"):
                    took = measure.fresh(pair.cold(side, folder), options.threads)
                    if run:  # the first one fills the caches of the disk
                        getattr(row, side).append(took)
                if run:
                    clock.tick(row.what)
        except RuntimeError as error:
            row.note = f"not measured: {error}"
            row.theirs, row.ours = [], []
    return row


# ----------------------------------------------------------------------------------------- report


def line(row: Row) -> str:
    if not row.ratios:
        return f"{row.what}: {row.note}"
    told = f"{row.what}: diffusers {measure.spread(row.theirs)}, kinema {measure.spread(row.ours)} {row.unit}"
    return f"{told}; ratio {measure.spread(row.ratios)}" + ("" if row.goal is None else f", goal {row.goal:.2f}")


def machine() -> dict[str, Any]:
    capabilities = dict(torch.cpu.get_capabilities()) if hasattr(torch.cpu, "get_capabilities") else {}
    units = [n for n in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "neon", "sve", "bf16") if capabilities.get(n)]
    return {"processor": platform.machine(), "cores": torch.get_num_threads(), "units": units}


def kind(told: dict[str, Any]) -> str:
    """The machine in a file's name."""
    finest = [n for n in ("amx_bf16", "avx512_bf16", "avx512_f", "avx2", "sve", "neon") if n in told["units"]]
    return f"cpu{told['cores']}-{finest[0] if finest else told['processor']}"


def unmeasured(options: argparse.Namespace, rows: list[Row]) -> list[str]:
    """What this run does not say."""
    told = ["GPUs: nothing here was run on one"] if not torch.cuda.is_available() else ["the GPU of this machine"]
    if "bf16" in options.dtype and arithmetic(torch.bfloat16, torch.device("cpu")) != torch.bfloat16:
        told.append(
            "bf16 units: this processor has none. Kinema then computes in float32 from weights rounded to bf16, which "
            "diffusers does not; the rows 'both in bf16 arithmetic' compare like with like, without units"
        )
    told += [f"{what}: left out" for what in WHAT if what not in options.only]
    if not options.compile:
        told.append("torch.compile: left out (--compile)")
    return told + [f"{row.what}: {row.note}" for row in rows if not row.ratios]


def table(rows: list[Row]) -> str:
    head = "| what | diffusers | kinema | diffusers / kinema | goal | difference |\n|---|---|---|---|---|---|"
    lines = []
    for row in rows:
        if not row.ratios:
            continue
        scale, unit = (2**20, "MiB") if row.unit == "bytes" else (1, "s")
        theirs, ours = ([v / scale for v in side] for side in (row.theirs, row.ours))
        lines.append(
            f"| {row.what} | {measure.spread(theirs)} {unit} | {measure.spread(ours)} {unit} | "
            f"**{measure.spread(row.ratios)}** | {'' if row.goal is None else f'≥ {row.goal:.2f}'} | "
            f"{'' if row.difference is None else f'{row.difference:.1e} σ'} |"
        )
    return "\n".join([head, *lines])


def write(pair: Pair, rows: list[Row], options: argparse.Namespace, stopped: str) -> None:
    import diffusers

    told = machine()
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__, "python": platform.python_version()}
    gaps = ([stopped] if stopped else []) + unmeasured(options, rows)
    result = {
        "date": date, "family": pair.name, "about": pair.about, "machine": told, "threads": options.threads,
        "runs": options.runs, "versions": versions, "rows": [row.to_json() for row in rows], "not measured": gaps,
    }  # fmt: skip
    text = "\n".join([
        f"# {pair.name} beside diffusers, {date}", "",
        f"{pair.about}. {options.threads} threads, {options.runs} alternating runs; median [least, most].",
        f"Machine: {told['processor']}, {', '.join(told['units'])}; {', '.join(map(' '.join, versions.items()))}.",
        "", table(rows), "", "Not measured, or to be read with care:", *(f"- {gap}" for gap in gaps), "",
    ])  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    stem = f"{date}-{kind(told)}-{pair.name}"
    for suffix, content in ((".json", json.dumps(result, indent=2) + "\n"), (".md", text)):
        with replacing(options.out / (stem + suffix)) as part:
            part.write_text(content, encoding="utf-8")
    print(f"\n{text}\n{options.out / stem}.json, .md", file=sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
