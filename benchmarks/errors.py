"""Errors of bfloat16: each network's output against the float32 output of the same weights, as relative RMS.

    python -m benchmarks.errors
    python -m benchmarks.errors --width full --runs 3
    python -m benchmarks.errors --only "svd U-Net" MMDiT

Weights and inputs are those that bfloat16 represents exactly, so only the arithmetic differs. Where diffusers or
transformers has the network, its error against its own float32 output is next to ours, of the same weights and inputs;
the goal is a ratio of at most 1.05. A run is a seed of the inputs; medians and ranges are over runs. At the published
width STDiT has 4 of its blocks, MMDiT one of each kind and T5 three, and clips are short.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from benchmarks.networks import NETWORKS, Run, Sides, in_precision
from benchmarks.vs import command
from benchmarks.vs.measure import Row, spread
from benchmarks.vs.progress import Progress

MOST = 1.05
SAME = 1e-3
"""Largest relative RMS between both float32 outputs."""


def main() -> int:
    parser = command.parser("benchmarks.errors", __doc__, NETWORKS)
    parser.add_argument("--width", choices=("reduced", "full"), default="reduced")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    suffix, where = ("", "") if options.width == "reduced" else ("-full", ", at the published width")
    report = (
        f"Errors of bfloat16{where}",
        f"Relative RMS of the bfloat16 output against the float32 output of the same weights; median [min, max] over "
        f"{options.runs} seeds. The ratio is Kinema's over the reference's",
        f"errors{suffix}",
    )
    settings = {"width": options.width}
    return command.run(options, report, __file__, settings, lambda progress: measured(progress, options), table)


def measured(progress: Progress, options: argparse.Namespace) -> Iterator[Row]:
    for name in options.only:
        row = progress.row(name, unit="relative RMS")
        if row.lacks(options.runs):
            row.theirs, row.ours, row.note = [], [], ""
            compare(row, NETWORKS[name](options.width), options.runs)
        yield row


def compare(row: Row, sides: Sides, runs: int) -> None:
    """Fill the row with errors of all runs."""
    exact, rough = outputs(sides.ours, sides.run, runs)
    row.ours = [relative(a, b) for a, b in zip(rough, exact, strict=True)]
    if sides.theirs is None or sides.run_theirs is None:
        row.note = "no reference"
        return
    exact_theirs, rough_theirs = outputs(sides.theirs, sides.run_theirs, runs)
    row.difference = max(relative(a, b) for a, b in zip(exact, exact_theirs, strict=True))
    if row.difference > SAME:
        row.note = f"float32 outputs differ by {row.difference:.1e}: not compared"
        return
    row.theirs = [relative(a, b) for a, b in zip(rough_theirs, exact_theirs, strict=True)]


def outputs(network: nn.Module, run: Run, runs: int) -> list[list[Tensor]]:
    """The outputs of all seeds in float32, then in bfloat16; the network stays in bfloat16."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        network.to(dtype)
        found.append([run(network, in_precision(seed, dtype)).float() for seed in range(1, runs + 1)])
    return found


def relative(a: Tensor, b: Tensor) -> float:
    """Root of the mean square of the difference over that of ``b``."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def table(rows: Sequence[Row]) -> str:
    lines = ["| network | reference | kinema | kinema / reference | goal | float32 outputs |", "|---" * 6 + "|"]
    for row in rows:
        ratios = [ours / theirs for theirs, ours in zip(row.theirs, row.ours, strict=False)]
        lines.append(
            f"| {row.what} | {spread(row.theirs)} | {spread(row.ours)} | "
            f"{f'**{spread(ratios)}** | ≤ {MOST}' if ratios else '– | '} | "
            f"{'' if row.difference is None else f'{row.difference:.1e}'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
