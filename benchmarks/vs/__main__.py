"""Kinema against diffusers: the same weights and settings, in alternating runs in one process.

    python -m benchmarks.vs --family svd
    python -m benchmarks.vs --family animatediff
    python -m benchmarks.vs --family opensora --upstream CHECKOUT
    python -m benchmarks.vs --family svd --only step decode --runs 3
    python -m benchmarks.vs --family svd --width full --budget --threads 1 --frames 4 --only step --dtype fp32

Each side runs a guided step as its own pipeline does: diffusers with both guidance branches in one batch, Kinema in the
order that `costs.order_of_branches` gives. Both results are compared before timing. Measured are a guided step, eager
and with Kinema's transformer blocks compiled (diffusers eager); decoding of a clip (seconds); peak extra memory of
decoding (in fresh processes); and a cold start (process start, imports, loading a folder of 500 MB, one step; in fresh
processes). A ratio is diffusers over Kinema for each pair of runs; the median counts. With other load on the machine,
only ratios of alternating runs are meaningful. Compiling requires PyTorch 2.12 or newer.

`--width full` measures networks of the published width instead of reduced ones. `--budget` adds to each timed row, for
both sides, the seconds of one call by kind of operation, and the share of the attainable: the seconds that the call's
own matrix products, convolutions and attention take alone, shape by shape, with the fastest kernel that PyTorch has,
over the row's seconds (`recorded.py`, `attainable.py`).

Every pair of runs is stored as soon as it is measured: the same command resumes after Ctrl-C or a kill, unless the code
or a library has changed. The table and its values are written with date and machine when everything is measured, after
those of other commands of the same day with the same settings; other settings have a file of their own.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["TORCHINDUCTOR_FREEZING"] = "1"  # read when torch._dynamo is imported

import torch
import torch._dynamo

from benchmarks.vs import measure
from benchmarks.vs.animatediff import AnimateDiffPair
from benchmarks.vs.attainable import Attainable, budget
from benchmarks.vs.encoders import T5Reading
from benchmarks.vs.measure import Clock, Row
from benchmarks.vs.opensora import OpenSoraBlocks
from benchmarks.vs.pairs import Comparison, Pair, Work
from benchmarks.vs.progress import Progress, code_hash
from benchmarks.vs.recorded import recorded
from benchmarks.vs.report import Report, line, machine, table, versions
from benchmarks.vs.sdxl import SDXLPair
from benchmarks.vs.svd import SVDPair
from kinema.system import policy_for

PAIRS: dict[str, Any] = {
    "svd": SVDPair,
    "animatediff": AnimateDiffPair,
    "sdxl": SDXLPair,
    "opensora": OpenSoraBlocks,
    "t5": T5Reading,
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WHAT = ("step", "decode", "memory", "cold", "compiled", *OpenSoraBlocks.parts, *T5Reading.parts)
SAME = {"fp32": 1e-3, "bf16": 0.5}
"""Largest difference, in standard deviations, at which results count as equal."""
FEW = 2
"""Number of pairs for rows that hardly vary (memory) or have no goal (both in bf16 arithmetic)."""


def main() -> int:
    options = read_options()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="diffusers")
    kind = PAIRS[options.family]
    pair: Comparison = kind(options.width, options.frames) if issubclass(kind, Pair) else kind(options.width)
    pair.upstream = options.upstream
    if options.memory_of and isinstance(pair, Pair):
        print(memory_of(pair, *options.memory_of.split(",")))
        return 0
    jobs = [job for job in pair.measured if job[0] in options.only and job[1] in ("", *options.dtype)]
    if not jobs:
        print(f"{pair.name} has none of these measurements with --width {options.width}", file=sys.stderr)
        return 2
    report = Report(title(pair, options), about(pair, options), stem(pair, options), settings(options), options)
    progress = Progress(options.out / f"{stem(pair, options)}-{options.threads}.partial.json", report.settings)
    clock, rows = Clock(len(jobs) * options.runs), []
    try:
        for what, dtype in jobs:
            for row in measured(pair, what, dtype, progress, options, clock):
                row.goal = None if "both in" in row.what or " alone" in row.what else pair.measured[what, dtype]
                row.command = report.command
                rows.append(row)
                print(line(row), flush=True)
    except KeyboardInterrupt:
        print(f"\n{table(rows, 'diffusers')}\ninterrupted; run the same command to resume from {progress.path}")
        return 130
    report.write(rows, unmeasured(pair, options, rows))
    progress.done(row.what for row in rows)
    return 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=sorted(PAIRS), default="svd")
    parser.add_argument("--width", choices=("reduced", "full"), default="reduced", help="of the networks")
    parser.add_argument("--frames", type=int, help="frames of a clip; default: the configuration's")
    parser.add_argument("--budget", action="store_true", help="seconds by kind, and the share of the attainable")
    parser.add_argument("--runs", type=int, default=5, help="alternating runs of each comparison")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=sorted(DTYPES), nargs="+", default=list(DTYPES))
    parser.add_argument(
        "--only",
        choices=WHAT,
        nargs="+",
        default=list(WHAT),
        help="measurements to run, of those that the family has goals for",
    )
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
    """Settings that must match for stored runs to be continued; the number of runs and rows may differ."""
    data = {
        "family": options.family,
        "width": options.width,
        "frames": options.frames,
        "cpu time": options.cpu_time,
        "threads": options.threads,
        "versions": versions(),
        "machine": machine(),
    }
    return data | {"code": code_hash()}


def stem(pair: Comparison, options: argparse.Namespace) -> str:
    """The family's part of a file name."""
    return pair.name if options.width == "reduced" else f"{pair.name}-{options.width}"


def title(pair: Comparison, options: argparse.Namespace) -> str:
    return f"{pair.name} against diffusers" + (", at the published width" if options.width == "full" else "")


def about(pair: Comparison, options: argparse.Namespace) -> str:
    return f"{pair.about}. {options.threads} threads, {options.runs} alternating runs or more; median [min, max]"


def measured(
    pair: Comparison, what: str, dtype: str, progress: Progress, options: argparse.Namespace, clock: Clock
) -> Iterator[Row]:
    """Yield the rows of one job as they are completed."""
    with torch.no_grad():
        if what == "cold" and isinstance(pair, Pair):
            yield cold_start(pair, progress, options, clock)
        elif what == "memory" and isinstance(pair, Pair):
            yield peaks(pair, dtype, progress, options, clock)
        else:
            yield from timed(getattr(pair, what), dtype, progress, options, clock)


def timed(
    works: Callable[[torch.dtype], dict[str, Work]],
    dtype: str,
    progress: Progress,
    options: argparse.Namespace,
    clock: Clock,
) -> Iterator[Row]:
    ticking = time.process_time if options.cpu_time else time.perf_counter
    variants = works(DTYPES[dtype])
    for name, work in variants.items():
        row = progress.row(f"{name}, {dtype}")
        runs = options.runs if "both in" not in name else min(options.runs, FEW)
        if row.lacks(runs):
            try:
                theirs, ours = compared(work, row, options, ticking)  # also warms up and compiles
            except torch._dynamo.exc.TorchDynamoException as error:
                row.note = f"not measured: {type(error).__name__}, {str(error).strip().splitlines()[0]}"
                yield row
                continue
            row.difference = float((theirs - ours).abs().max() / theirs.std()) if work.same else None
            del theirs, ours
            if row.difference is not None and not row.difference <= SAME[dtype]:
                row.note, row.theirs, row.ours = "results differ: not timed", [], []
                yield row
                continue
            for _ in measure.alternate(row, {"theirs": work.theirs, "ours": work.ours}, runs, ticking):
                progress.save()
                clock.tick(row.what, options.runs / runs / len(variants))
        else:
            clock.skip(options.runs / len(variants))
        yield row


def compared(
    work: Work, row: Row, options: argparse.Namespace, clock: Callable[[], float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The results of both sides; stores their budgets if asked for."""
    if not (options.budget and work.weights):
        return work.theirs().float(), work.ours().float()
    sides = {"theirs": work.theirs, "ours": work.ours}
    results, recordings = {}, {}
    for side, call in sides.items():
        call()  # the first one prepares: its weights and memory are not in place
        result, recordings[side] = recorded(call, work.weights)
        results[side] = result.float()
    attainable = Attainable(clock)
    row.budget = {side: budget(recording, attainable) for side, recording in recordings.items()}
    return results["theirs"], results["ours"]


def peaks(pair: Pair, dtype: str, progress: Progress, options: argparse.Namespace, clock: Clock) -> Row:
    """Peak extra memory of one decoding, each in its own process."""
    row, runs = progress.row(f"decode, peak extra memory, {dtype}", unit="bytes"), min(options.runs, FEW)
    clock.skip(min(len(row.ours), runs) * options.runs / runs)
    while row.lacks(runs):
        results = {}
        for side in ("theirs", "ours"):
            words = ["--family", pair.name, "--memory-of", f"{side},{dtype}", "--threads", str(options.threads)]
            words += ["--width", options.width, *(["--frames", str(options.frames)] if options.frames else [])]
            results[side] = measure.in_fresh_process(words, options.threads)
        if "None" in results.values():
            row.note = "not measured: this system does not report peak memory"
            return row
        row.add(float(results["theirs"]), float(results["ours"]))
        progress.save()
        clock.tick(row.what)
    return row


def memory_of(pair: Pair, side: str, dtype: str) -> int | None:
    work = pair.decode(DTYPES[dtype])["decode"]
    with torch.no_grad():
        return measure.peak_extra(getattr(work, side))


def cold_start(pair: Pair, progress: Progress, options: argparse.Namespace, clock: Clock) -> Row:
    row = progress.row("cold start: process, imports, loading, one step")
    clock.skip(min(len(row.ours), options.runs))
    if not row.lacks(options.runs):
        return row
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        pair.folder(folder)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        row.note = f"a folder of {size / 1e6:.0f} MB, read before (in the page cache)"
        programs = [pair.cold(side, folder) for side in ("theirs", "ours")]
        try:
            for program in programs:  # fills the disk cache
                measure.fresh(program, options.threads)
            while row.lacks(options.runs):
                row.add(*(measure.fresh(program, options.threads) for program in programs))
                progress.save()
                clock.tick(row.what)
        except RuntimeError as error:
            row.note, row.theirs, row.ours = f"not measured: {error}", [], []
    return row


def unmeasured(pair: Comparison, options: argparse.Namespace, rows: list[Row]) -> list[str]:
    """What this run does not cover."""
    gaps = ["GPUs: not measured"] if not torch.cuda.is_available() else ["the GPU of this machine"]
    if options.cpu_time:
        gaps.insert(0, "seconds are those of the processor: other programs ran at the same time")
    if "bf16" in options.dtype and policy_for(torch.bfloat16, torch.device("cpu")).computed != torch.bfloat16:
        gaps.append(
            "native bf16: this CPU lacks it. Kinema then computes in float32 from weights rounded to bf16, which "
            "diffusers does not; the rows 'both in bfloat16 arithmetic' compare the same computation"
        )
    for what, dtype in pair.measured:
        if what not in options.only or dtype not in ("", *options.dtype):
            gaps.append(f"{what}{dtype and ', ' + dtype}: skipped")
    return gaps + pair.gaps() + [f"{row.what}: {row.note}" for row in rows if row.note]


if __name__ == "__main__":
    sys.exit(main())
