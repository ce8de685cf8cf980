"""Kinema beside diffusers: the same weights, the same numbers, alternating runs in one process.

    python -m benchmarks.vs --family svd
    python -m benchmarks.vs --family animatediff
    python -m benchmarks.vs --family opensora --upstream CHECKOUT
    python -m benchmarks.vs --family svd --only step decode --runs 3

Each side runs a guided step as its own pipeline does: diffusers with both halves of guidance in one batch, Kinema
with both at the same time, each on half of the threads. Before anything is timed, both results are compared. What is
measured: a guided step, eager and with our transformers compiled (theirs eager), and the decoding of a clip (seconds);
peak extra memory of the decoding (a fresh process a run); and a cold start (process start, imports, loading a folder
of 500 MB, one step; fresh processes). A ratio is theirs over ours, run by run, and its median counts; only ratios of
one machine, measured by turns, mean anything where others compute too. Compiling asks for PyTorch 2.12 or newer.

Every pair of runs is kept as soon as it is measured: the same command goes on after Ctrl-C or a kill, unless the code
or a library has changed since. The table and its figures are written with date and machine when all is measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["TORCHINDUCTOR_FREEZING"] = "1"  # read as torch._dynamo is imported

import torch
import torch._dynamo

from benchmarks.vs import measure
from benchmarks.vs.animatediff import AnimateDiffPair
from benchmarks.vs.kept import Kept, code_hash
from benchmarks.vs.measure import Clock, Row
from benchmarks.vs.opensora import OpenSoraBlocks
from benchmarks.vs.pairs import Comparison, Pair, Work
from benchmarks.vs.svd import SVDPair
from kinema import processor
from kinema.atomic import replacing
from kinema.system import policy_for

PAIRS: dict[str, Any] = {"svd": SVDPair, "animatediff": AnimateDiffPair, "opensora": OpenSoraBlocks}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WHAT = ("step", "decode", "memory", "cold", "compiled", *OpenSoraBlocks.parts)
SAME = {"fp32": 1e-3, "bf16": 0.5}
"""Largest difference, in standard deviations, up to which results count as the same numbers."""
FEW = 2
"""Pairs of what hardly varies (memory), or has no goal (rows that both compute in bf16 arithmetic)."""


def main() -> int:
    options = read_options()
    torch.set_num_threads(options.threads)
    pair: Comparison = PAIRS[options.family]()
    pair.upstream = options.upstream
    if options.memory_of and isinstance(pair, Pair):
        print(memory_of(pair, *options.memory_of.split(",")))
        return 0
    jobs = [job for job in pair.goals if job[0] in options.only and job[1] in ("", *options.dtype)]
    kept = Kept(options.out / f"{pair.name}.partial.json", settings(options))
    clock, rows = Clock(len(jobs) * options.runs), []
    try:
        for what, dtype in jobs:
            for row in measured(pair, what, dtype, kept, options, clock):
                row.goal = None if "both in" in row.what or " alone" in row.what else pair.goals[what, dtype]
                rows.append(row)
                print(line(row), flush=True)
    except KeyboardInterrupt:
        print(f"\n{table(rows)}\ninterrupted; the same command goes on: what was measured is in {kept.path}")
        return 130
    write(pair, rows, options)
    kept.done(row.what for row in rows)
    return 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=sorted(PAIRS), default="svd")
    parser.add_argument("--runs", type=int, default=5, help="alternating runs of each comparison")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=sorted(DTYPES), nargs="+", default=list(DTYPES))
    parser.add_argument("--only", choices=WHAT, nargs="+", default=list(WHAT), help="of what the family's goals name")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="seconds of the processor, not of the clock: on a machine that others use (with --threads 1)",
    )
    parser.add_argument("--upstream", type=Path, help="checkout of the original code (opensora); else left out")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args()


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What must be the same for runs to be continued: more runs, or other rows, may be asked for."""
    told = {
        "family": options.family,
        "cpu time": options.cpu_time,
        "threads": options.threads,
        "versions": versions(),
        "machine": machine(),
    }
    return told | {"code": code_hash()}


def measured(
    pair: Comparison, what: str, dtype: str, kept: Kept, options: argparse.Namespace, clock: Clock
) -> Iterator[Row]:
    """The rows of one job, as soon as each stands."""
    with torch.no_grad():
        if what == "cold" and isinstance(pair, Pair):
            yield cold_start(pair, kept, options, clock)
        elif what == "memory" and isinstance(pair, Pair):
            yield peaks(pair, dtype, kept, options, clock)
        else:
            yield from timed(getattr(pair, what), dtype, kept, options, clock)


def timed(
    works: Callable[[torch.dtype], dict[str, Work]], dtype: str, kept: Kept, options: argparse.Namespace, clock: Clock
) -> Iterator[Row]:
    ticking = time.process_time if options.cpu_time else time.perf_counter
    made = works(DTYPES[dtype])
    for name, work in made.items():
        row = kept.row(f"{name}, {dtype}")
        runs = options.runs if "both in" not in name else min(options.runs, FEW)
        if row.lacks(runs):
            try:
                theirs, ours = work.theirs().float(), work.ours().float()  # also warms both, and compiles
            except torch._dynamo.exc.TorchDynamoException as error:
                row.note = f"not measured: {type(error).__name__}, {str(error).strip().splitlines()[0]}"
                yield row
                continue
            row.difference = float((theirs - ours).abs().max() / theirs.std()) if work.same else None
            if row.difference is not None and not row.difference <= SAME[dtype]:
                row.note, row.theirs, row.ours = "not the same numbers: not timed", [], []
                yield row
                continue
            for _ in measure.alternate(row, {"theirs": work.theirs, "ours": work.ours}, runs, ticking):
                kept.save()
                clock.tick(row.what, options.runs / runs / len(made))
        else:
            clock.pass_over(options.runs / len(made))
        yield row


def peaks(pair: Pair, dtype: str, kept: Kept, options: argparse.Namespace, clock: Clock) -> Row:
    """Peak extra memory of one decoding, each in a process of its own."""
    row, runs = kept.row(f"decode, peak extra memory, {dtype}", unit="bytes"), min(options.runs, FEW)
    clock.pass_over(min(len(row.ours), runs) * options.runs / runs)
    while row.lacks(runs):
        told = {}
        for side in ("theirs", "ours"):
            words = ["--family", pair.name, "--memory-of", f"{side},{dtype}", "--threads", str(options.threads)]
            told[side] = measure.in_fresh_process(words, options.threads)
        if "None" in told.values():
            row.note = "not measured: this system does not tell a process its high-water mark"
            return row
        row.add(float(told["theirs"]), float(told["ours"]))
        kept.save()
        clock.tick(row.what)
    return row


def memory_of(pair: Pair, side: str, dtype: str) -> int | None:
    work = pair.decode(DTYPES[dtype])["decode"]
    with torch.no_grad():
        return measure.peak_extra(getattr(work, side))


def cold_start(pair: Pair, kept: Kept, options: argparse.Namespace, clock: Clock) -> Row:
    row = kept.row("cold start: process, imports, loading, one step")
    clock.pass_over(min(len(row.ours), options.runs))
    if not row.lacks(options.runs):
        return row
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        pair.folder(folder)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        row.note = f"a folder of {size / 1e6:.0f} MB, read before (in the page cache)"
        programs = [pair.cold(side, folder) for side in ("theirs", "ours")]
        try:
            for program in programs:  # fills the caches of the disk
                measure.fresh(program, options.threads)
            while row.lacks(options.runs):
                row.add(*(measure.fresh(program, options.threads) for program in programs))
                kept.save()
                clock.tick(row.what)
        except RuntimeError as error:
            row.note, row.theirs, row.ours = f"not measured: {error}", [], []
    return row


# ----------------------------------------------------------------------------------------- report


def line(row: Row) -> str:
    if not row.ratios:
        return f"{row.what}: {row.note}"
    told = f"{row.what}: diffusers {measure.spread(row.theirs)}, kinema {measure.spread(row.ours)} {row.unit}"
    return f"{told}; ratio {measure.spread(row.ratios)}" + ("" if row.goal is None else f", goal {row.goal:.2f}")


def machine() -> dict[str, Any]:
    told = processor.told()
    units = [n for n in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "neon", "sve", "bf16") if told.get(n)]
    return {
        "processor": f"{told.get('cpu_name', '')} {platform.machine()}".strip(),
        "cores": os.cpu_count(),
        "units": units,
        "system": platform.system(),
    }


def versions() -> dict[str, str]:
    import diffusers

    return {"torch": torch.__version__, "diffusers": diffusers.__version__, "python": platform.python_version()}


def kind(told: dict[str, Any], threads: int) -> str:
    """The machine in a file's name."""
    finest = [n for n in ("amx_bf16", "avx512_bf16", "avx512_f", "avx2", "sve", "neon") if n in told["units"]]
    return f"cpu{threads}-{finest[0] if finest else platform.machine()}"


def unmeasured(pair: Comparison, options: argparse.Namespace, rows: list[Row]) -> list[str]:
    """What this run does not say."""
    told = ["GPUs: nothing here was run on one"] if not torch.cuda.is_available() else ["the GPU of this machine"]
    if "bf16" in options.dtype and policy_for(torch.bfloat16, torch.device("cpu")).computed != torch.bfloat16:
        told.append(
            "bf16 units: this processor has none. Kinema then computes in float32 from weights rounded to bf16, which "
            "diffusers does not; the rows 'both in bfloat16 arithmetic' compare like with like, without units"
        )
    for what, dtype in pair.goals:
        if what not in options.only or dtype not in ("", *options.dtype):
            told.append(f"{what}{dtype and ', ' + dtype}: left out")
    return told + pair.gaps() + [f"{row.what}: {row.note}" for row in rows if row.note]


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


def write(pair: Comparison, rows: list[Row], options: argparse.Namespace) -> None:
    told = machine()
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    gaps = unmeasured(pair, options, rows)
    if options.cpu_time:
        gaps.insert(0, "seconds are those of the processor: other programs ran at the same time")
    result = {
        "date": date, "family": pair.name, "about": pair.about, "machine": told, "threads": options.threads,
        "runs": options.runs, "versions": versions(), "rows": [row.to_json() for row in rows], "to be known": gaps,
    }  # fmt: skip
    units, libraries = ", ".join(told["units"]), ", ".join(map(" ".join, versions().items()))
    text = "\n".join([
        f"# {pair.name} beside diffusers, {date}", "",
        f"{pair.about}. {options.threads} threads, {options.runs} alternating runs or more; median [least, most].",
        f"Machine: {told['processor']}, {told['cores']} cores, {units}; {libraries}.",
        "", table(rows), "", "Not measured, or to be read with care:", *(f"- {gap}" for gap in gaps), "",
    ])  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    stem = f"{date}-{kind(told, options.threads)}-{pair.name}"
    for suffix, content in ((".json", json.dumps(result, indent=2) + "\n"), (".md", text)):
        with replacing(options.out / (stem + suffix)) as part:
            part.write_text(content, encoding="utf-8")
    print(f"\n{text}\n{options.out / stem}.json, .md")


if __name__ == "__main__":
    sys.exit(main())
