"""Opening a model and keeping it open: loading with a cast, the second clip of a process, memory over many clips.

    python -m benchmarks.stay
    python -m benchmarks.stay --only clip memory --models zoetrope svd-pocket --clips 50

load: a diffusers folder of SVD (reduced) in one precision, loaded in the other, by `kinema.load` and by diffusers'
`from_pretrained`: seconds until every weight has been read, and peak memory above that of the imports, each in a fresh
process. clip: a later clip of a process against the seconds of its parts, which are its encoding and decoding, and for
each stage the number of steps times the median step; the goal is at most 1.03. memory: resident bytes after each clip;
the slope is the median of those between all pairs of clips after the first few (Theil and Sen), and counts as flat up
to 0.1 MiB a clip. The cold start is a row of `benchmarks.vs`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import kinema
from benchmarks.vs import command, measure
from benchmarks.vs.measure import Row, spread
from benchmarks.vs.progress import Progress
from benchmarks.vs.svd import IMAGE, SVDPair
from kinema.events import Event, Phase, Step

MODELS = ("zoetrope", "svd-pocket", "animatediff-pocket", "opensora-pocket", "lumiere-pocket", "svd-reduced")
CASTS = {"fp32": "bf16", "bf16": "fp32"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MOST, FLAT, FIRST = 1.03, 0.1 * 2**20, 5
"""Largest ratio of a later clip to its parts; bytes a clip that count as flat; clips before the slope is measured."""
PROMPT = "a red circle moves right"


def main() -> int:
    parser = command.parser("benchmarks.stay", __doc__, ("load", "clip", "memory"))
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--clips", type=int, default=50, help="of the rows of memory")
    parser.add_argument("--steps", type=int, default=6, help="sampling steps of the later clip; 2 for memory")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(child(json.loads(options.child))))
        return 0
    report = (
        "Opening a model and keeping it open",
        f"{options.threads} threads; median [min, max] of {options.runs} runs in fresh processes",
        "stay",
    )
    settings = {"clips": options.clips, "steps": options.steps}
    with tempfile.TemporaryDirectory(prefix="stay-") as scratch:
        folders = written(Path(scratch), options)
        return command.run(options, report, __file__, settings, lambda p: measured(p, options, folders), table)


def written(scratch: Path, options: argparse.Namespace) -> dict[str, Path]:
    """Folders of the reduced SVD by precision, as far as rows need them, and an image."""
    if "load" in options.only or "svd-reduced" in options.models:
        for name in CASTS if "load" in options.only else ("fp32",):
            SVDPair().folder(scratch / name, DTYPES[name])
    Image.effect_noise((64, 64), 64).convert("RGB").save(scratch / IMAGE)
    return {path.name: path for path in scratch.iterdir()}


def measured(progress: Progress, options: argparse.Namespace, folders: dict[str, Path]) -> Iterator[Row]:
    if "load" in options.only:
        for name, cast in CASTS.items():
            yield from loads(progress, options, folders[name], cast)
    for model in options.models if "clip" in options.only else ():
        row = progress.row(f"later clip, {model}, {options.steps} steps")
        if row.lacks(options.runs):
            row.theirs, row.ours = [], []
            for clip in run_clips(model, options.runs + 1, options.steps, folders, options)[1:]:
                row.add(clip["parts"], clip["seconds"])
        yield row
    for model in options.models if "memory" in options.only else ():
        row = progress.row(f"memory over {options.clips} clips, {model}", unit="bytes")
        if row.lacks(options.clips):
            row.ours = [clip["resident"] for clip in run_clips(model, options.clips, 2, folders, options)]
        yield row


def loads(progress: Progress, options: argparse.Namespace, folder: Path, cast: str) -> Iterator[Row]:
    """The rows of seconds and of peak memory of one folder."""
    rows = [
        progress.row(f"load a {folder.name} folder as {cast}"),
        progress.row(f"load a {folder.name} folder as {cast}, peak memory", unit="bytes"),
    ]
    sides = {side: {"load": side, "folder": str(folder), "dtype": cast} for side in ("theirs", "ours")}
    if rows[0].lacks(options.runs):
        for job in sides.values():  # fills the disk cache
            fresh(job, options)
    while rows[0].lacks(options.runs):
        found = {side: fresh(job, options) for side, job in sides.items()}
        for row, what in zip(rows, ("seconds", "peak"), strict=True):
            row.add(*(each[what] for each in found.values()))
        progress.save()
    yield from rows


def run_clips(
    model: str, clips: int, steps: int, folders: dict[str, Path], options: argparse.Namespace
) -> list[dict[str, float]]:
    """Run ``clips`` clips in one fresh process: seconds, those of the parts, and resident bytes after each."""
    source = str(folders["fp32"]) if model == "svd-reduced" else model
    job = {"clips": clips, "model": source, "steps": steps, "image": str(folders[IMAGE]), "name": model}
    return fresh(job, options)


def fresh(job: dict[str, Any], options: argparse.Namespace) -> Any:
    words = ["--threads", str(options.threads), "--child", json.dumps(job)]
    return json.loads(measure.in_fresh_process(words, options.threads, "benchmarks.stay"))


# ---------------------------------------------------------------------------------- in the fresh process


def child(job: dict[str, Any]) -> Any:
    if "load" in job:
        return load(job["load"], job["folder"], DTYPES[job["dtype"]])
    overrides = {"frames": 2, "height": 64, "width": 64} if job["name"] == "svd-reduced" else None
    model = kinema.load(job["model"], overrides=overrides)
    animates = "svd" in job["name"]
    more = {"task": "animate", "image": job["image"]} if animates else {"prompt": PROMPT}
    requests = (kinema.Request(**more, steps=job["steps"], seed=seed) for seed in range(job["clips"]))
    return [clip(model, request) for request in requests]


def load(side: str, folder: str, dtype: torch.dtype) -> dict[str, float]:
    """Seconds of loading, with every page of every weight read, and peak bytes above the imports."""
    from diffusers import StableVideoDiffusionPipeline

    kinema.load("svd", preset="tiny")  # imports the family, as the line above imports diffusers' pipeline
    took = []

    def call() -> None:
        began = time.perf_counter()
        if side == "ours":
            networks = [kinema.load(folder, dtype=dtype).system.model]
        else:
            pipe = StableVideoDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype)
            networks = [pipe.unet, pipe.vae, pipe.image_encoder]
        for network in networks:
            for p in network.parameters():
                p.detach().reshape(-1)[:: 4096 // p.itemsize].sum()
        took.append(time.perf_counter() - began)

    peak = measure.peak_extra(call)
    return {"seconds": took[0], "peak": float("nan") if peak is None else float(peak)}


def clip(model: kinema.Model, request: kinema.Request) -> dict[str, float]:
    seen: list[tuple[float, Event]] = []
    began = time.perf_counter()
    model.run(request, on_event=lambda event: seen.append((time.perf_counter(), event)))
    ended = time.perf_counter()
    return {"seconds": ended - began, "parts": parts(seen, ended), "resident": measure.resident()}


def parts(seen: Sequence[tuple[float, Event]], ended: float) -> float:
    """Encoding and decoding, and for each stage its steps times the median step, in seconds."""
    marks = [(at, event) for at, event in seen if isinstance(event, Phase | Step)]
    ends = [at for at, _ in marks[1:]] + [ended]
    total, steps = 0.0, []
    for (at, event), end, (_, after) in zip(marks, ends, [*marks[1:], (ended, Phase("end"))], strict=True):
        if isinstance(event, Phase) and event.name in ("condition", "decode"):
            total += end - at
        if isinstance(after, Step):
            steps.append(end - at)
        elif steps:
            total += len(steps) * statistics.median(steps)
            steps = []
    return total


# ------------------------------------------------------------------------------------------------ table


def slope(values: Sequence[float]) -> float:
    """Median slope between all pairs after the first few."""
    kept = list(enumerate(values))[FIRST if len(values) > 2 * FIRST else 0 :]
    return statistics.median((b - a) / (j - i) for (i, a), (j, b) in combinations(kept, 2))


def table(rows: Sequence[Row]) -> str:
    lines = ["| what | diffusers, or the parts | kinema | ratio | goal |", "|---" * 5 + "|"]
    for row in rows:
        scale, unit = (2**20, "MiB") if row.unit == "bytes" else (1, "s")
        theirs, ours = ([each / scale for each in side] for side in (row.theirs, row.ours))
        if row.what.startswith("memory over"):
            rate = slope(row.ours) / 2**20
            ratio, goal = f"**{rate:+.3f} MiB a clip**", f"≤ {FLAT / 2**20:g} MiB a clip"
        elif row.what.startswith("later clip"):
            ratio = f"**{spread([a / b for a, b in zip(row.ours, row.theirs, strict=True)])}** (kinema / parts)"
            goal = f"≤ {MOST}"
        else:
            ratio, goal = f"**{spread(row.ratios)}** (diffusers / kinema)", "≥ 1"
        first = f"{spread(theirs)} {unit}" if theirs else ""
        lines.append(f"| {row.what} | {first} | {spread(ours)} {unit} | {ratio} | {goal} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
