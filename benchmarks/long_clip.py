"""Does a long clip in windows fit in the memory of a short one? Peak resident memory of 64 frames against 16.

A reduced, untrained AnimateDiff generates clips from prompt to pixels, each in its own process, alternating between
the arms: 16 frames in one pass; 64 frames in windows of 16; 64 frames in one pass (with stretched positions), for
comparison. Reports medians of peak memory, and of peak memory above the loaded weights, as ratios to 16 frames. Both
include the pixels, latents and masks of all 64 frames.

    python benchmarks/long_clip.py                       # about three minutes on one free CPU thread
    python benchmarks/long_clip.py --repeats 3 --side 256

Prints a table, and writes it to --out as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ARMS = {"16 frames": (16, None), "64 in windows of 16": (64, 16), "64 at once": (64, None)}


def main() -> int:
    options = read_options()
    if options.arm:
        sys.stdout.write(json.dumps(measure(*ARMS[options.arm], options)))
        return 0
    measured: dict[str, list[dict[str, int]]] = {arm: [] for arm in ARMS}
    for _ in range(options.repeats):
        for arm in ARMS:  # alternate, so that other load affects all arms
            measured[arm].append(fresh(arm))
            sys.stderr.write(f"{arm}: {measured[arm][-1]}\n")
    results = {arm: summary(runs, measured["16 frames"]) for arm, runs in measured.items()}
    sys.stdout.write(table(results))
    if options.out:
        settings = {name: value for name, value in vars(options).items() if name not in ("arm", "out")}
        options.out.write_text(json.dumps(settings | {"arms": results}, indent=2) + "\n", encoding="utf-8")
    return 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--side", type=int, default=192, help="pixels")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    return parser.parse_args()


def fresh(arm: str) -> dict[str, int]:
    """Run once in a new process, with the same options."""
    command = [sys.executable, __file__, *sys.argv[1:], "--arm", arm]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(frames: int, window: int | None, options: argparse.Namespace) -> dict[str, int]:
    """Resident bytes with the weights loaded, and at the peak of a run."""
    import torch

    from kinema.api import load
    from kinema.conditioning.clip_text import ClipTextSize
    from kinema.schema import Request

    torch.set_num_threads(options.threads)
    small = {
        "channels": (64, 128, 256, 256),
        "vae_channels": (64, 128, 256, 256),
        "layers": 2,
        "depths": (1, 1, 1, 0),
        "heads": (8, 8, 8, 8),
        "motion_heads": 8,
        "context": 256,
        "positions": 32,
        "stretch": 64 if window is None and frames > 32 else None,
    }
    model = load("animatediff", preset="tiny")
    size = model.system.config.text[0]
    text = (ClipTextSize(width=256, layers=2, heads=4, mlp=512, length=20, vocabulary=size.vocabulary),)
    model = load("animatediff", preset="tiny", overrides=small | {"text": text})
    _ = model.system.model
    loaded = resident()
    request = Request(
        prompt="a red ball rolls right",
        seed=0,
        frames=frames,
        window=window,
        steps=options.steps,
        guidance=7.5,
        height=options.side,
        width=options.side,
    )
    assert model.run(request).shape.frames == frames
    return {"loaded": loaded, "peak": peak()}


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def summary(runs: list[dict[str, int]], short: list[dict[str, int]]) -> dict[str, float]:
    def median(of: list[dict[str, int]], *, above: bool) -> float:
        return statistics.median(run["peak"] - above * run["loaded"] for run in of)

    return {
        "peak MiB": median(runs, above=False) / 2**20,
        "ratio": median(runs, above=False) / median(short, above=False),
        "above weights MiB": median(runs, above=True) / 2**20,
        "ratio above weights": median(runs, above=True) / median(short, above=True),
    }


def table(results: dict[str, dict[str, float]]) -> str:
    names = list(results["16 frames"])
    rows = [["", *names], *([arm, *(f"{row[n]:.2f}" for n in names)] for arm, row in results.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(names) + 1)]
    lines = ("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
