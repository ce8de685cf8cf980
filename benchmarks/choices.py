"""Every option of the package's choices, timed: the one it chooses over the best.

    python -m benchmarks.choices
    python -m benchmarks.choices --only rows --threads 1 --widths 448 1280

rows: tokens that a feed-forward layer computes at a time, a power of two or all. branches: both branches of guidance
one after the other, at the same time on half of the threads each, or as one batch. Options alternate; weights are cold,
as in a step. What the package chooses is seen from a recording of its own call. The goal is chosen/best of at most
1.03.
The cost model's constants were set at widths 64, 320, 448, 640 and 1280; the others are new to it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count

import torch
from torch import Tensor

from benchmarks.networks import Sides, in_precision, svd
from benchmarks.vs import command
from benchmarks.vs.attainable import cache_bytes
from benchmarks.vs.measure import Row, spread
from benchmarks.vs.pairs import drawn, uninitialised
from benchmarks.vs.progress import Progress
from benchmarks.vs.recorded import Recording, recorded
from benchmarks.vs.svd import SVDPair
from kinema import processor
from kinema.diffusion.guidance import run_in_parallel
from kinema.nn.ldm_unet import FeedForward

MOST = 1.03
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WIDTHS = (128, 320, 448, 960, 1280)
"""Widths of feed-forward layers by default."""
WORK = 2**33
"""Multiplications of a layer at most, which limit its tokens."""
FEWEST, TOKENS = 32, 8192
BRIEF = 0.05
"""Seconds at least of a measurement."""
LEVELS = {
    "64-256": ((64, 128, 256, 256), (1, 2, 4, 4)),
    "128-512": ((128, 256, 512, 512), (2, 4, 8, 8)),
    "192-768": ((192, 384, 768, 768), (3, 6, 12, 12)),
    "320-1280": ((320, 640, 1280, 1280), (5, 10, 20, 20)),
}
"""Channels and heads of U-Nets whose branches are timed."""
ORDERS = ("one after the other", "at the same time", "one batch")
Options = Mapping[str, Callable[[], Tensor]]


def main() -> int:
    parser = command.parser("benchmarks.choices", __doc__, ("rows", "branches"))
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument("--levels", choices=LEVELS, nargs="+", default=list(LEVELS))
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--frames", type=int, default=4, help="of the clip whose branches are timed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = (
        "Choices of the package",
        f"Seconds of the option that the package chooses and of the best of all; {options.threads} threads, median "
        f"[min, max] of {options.runs} alternating runs",
        "choices",
    )
    settings = {"frames": options.frames}
    return command.run(options, report, __file__, settings, lambda progress: measured(progress, options), table)


def measured(progress: Progress, options: argparse.Namespace) -> Iterator[Row]:
    for dtype in options.dtype:
        if dtype == "bf16" and processor.is_native(torch.bfloat16) is False:
            print("bf16 is left out: on this CPU the package computes it in float32", flush=True)
            continue
        for width in options.widths if "rows" in options.only else ():
            for tokens in token_counts(width):
                row = progress.row(f"feed-forward rows at once, width {width}, {tokens} tokens, {dtype}")
                yield from timed(
                    row, lambda w=width, t=tokens, d=dtype: rows_options(w, t, DTYPES[d]), progress, options
                )
        for level in options.levels if "branches" in options.only else ():
            row = progress.row(f"guidance branches, U-Net of {level} channels, {options.frames} frames, {dtype}")
            yield from timed(
                row, lambda x=level, d=dtype: branch_options(x, options.frames, DTYPES[d]), progress, options
            )


def timed(
    row: Row, make: Callable[[], tuple[Options, str]], progress: Progress, options: argparse.Namespace
) -> Iterator[Row]:
    """Time all options alternately; ``make`` returns them and the chosen one's name."""
    if row.lacks(options.runs):
        calls, row.chosen = make()
        repeats = {name: enough(call) for name, call in calls.items()}
        row.options = row.options or {name: [] for name in calls}
        while row.lacks(options.runs):
            took = {name: seconds(call, repeats[name]) for name, call in calls.items()}
            for name, each in took.items():
                row.options[name].append(each)
            row.ours.append(took[row.chosen])
            progress.save()
        best = min(row.options, key=lambda name: statistics.median(row.options[name]))
        row.theirs = row.options[best]
    yield row


def enough(call: Callable[[], Tensor]) -> int:
    """How many calls take long enough to be timed, after a first one that prepares."""
    call()
    return math.ceil(BRIEF / max(seconds(call, 1), BRIEF / 1000))


def seconds(call: Callable[[], Tensor], repeats: int) -> float:
    """Seconds of one call, the mean over ``repeats``."""
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats


# ------------------------------------------------------------------------------------ feed-forward layers


def token_counts(width: int) -> list[int]:
    """Numbers of tokens as in a U-Net's levels: the finest has many, at most as many as the time allows."""
    most = min(TOKENS, 2 ** int(math.log2(WORK / (12 * width**2))))
    return [most, most // 4]


def rows_options(width: int, tokens: int, dtype: torch.dtype) -> tuple[Options, str]:
    """Calls with each number of rows at once, and the number that the package chooses."""
    layers = cold_layers(width, dtype)
    normal = in_precision(1, dtype)
    x, onto, turn = normal(1, tokens, width), normal(1, tokens, width), count()

    def call(chunk: int | None) -> Tensor:
        layer = layers[next(turn) % len(layers)]
        layer.chunk = chunk
        return layer(x, onto.clone())

    _, recording = recorded(lambda: call(None), layers)
    chunks = [2**k for k in range(FEWEST.bit_length() - 1, tokens.bit_length()) if 2**k < tokens] + [tokens]
    chosen = rows_of(recording)
    options = {str(chunk): lambda chunk=chunk: call(chunk) for chunk in sorted({*chunks, chosen})}
    return options, str(chosen)


def cold_layers(width: int, dtype: torch.dtype) -> list[FeedForward]:
    """Layers whose weights together exceed the cache."""
    each = 12 * width**2 * dtype.itemsize
    with uninitialised():
        first = drawn(FeedForward(width))
        others = [FeedForward(width).eval() for _ in range(math.ceil(cache_bytes() / each))]
    for other in others:
        other.load_state_dict(first.state_dict())
    return [layer.to(dtype).requires_grad_(False) for layer in (first, *others)]


def rows_of(recording: Recording) -> int:
    """How many rows the layer's products had; the last part may have fewer."""
    return max(product.sizes[0] for product in recording.products if product.kind == "linear")


# ---------------------------------------------------------------------------------- branches of guidance


def branch_options(level: str, frames: int, dtype: torch.dtype) -> tuple[Options, str]:
    """Both branches of SVD's U-Net with these channels in each order, and the order of the package's guided step."""
    pair = SVDPair("full", frames)
    channels, heads = LEVELS[level]
    pair.config = replace(pair.config, channels=channels, heads=heads)
    system, networks = pair.parts(dtype)
    sides: Sides = svd("full", (pair, system, networks))
    unet, normal = sides.ours, in_precision(1, dtype)
    double = lambda first, *rest: normal(2 * first, *rest)  # noqa: E731
    options = {
        ORDERS[0]: lambda: (one(), one())[1],
        ORDERS[1]: lambda: run_in_parallel(one, one)[1],
        ORDERS[2]: lambda: sides.run(unet, double),
    }
    if torch.get_num_threads() % 2:
        del options[ORDERS[1]]

    def one() -> Tensor:
        return sides.run(unet, normal)

    work = pair.one_step(system, networks["unet"], dtype)
    _, recording = recorded(work.ours, work.weights)
    return options, order_of(recording, frames)


def order_of(recording: Recording, frames: int) -> str:
    """In which order a guided step ran its branches."""
    if recording.threads > 1:
        return ORDERS[1]
    images = max(product.sizes[0][0] for product in recording.products if product.kind == "convolution")
    return ORDERS[2] if images > frames else ORDERS[0]


# ------------------------------------------------------------------------------------------------ table


def table(rows: Sequence[Row]) -> str:
    lines = ["| choice | chosen | s | best | s | chosen / best | goal | others, s |", "|---" * 8 + "|"]
    for row in rows:
        medians = {name: statistics.median(each) for name, each in row.options.items()}
        best = min(medians, key=medians.__getitem__)
        ratios = [ours / theirs for ours, theirs in zip(row.ours, row.theirs, strict=True)]
        others = ", ".join(f"{name}: {each:.3g}" for name, each in medians.items() if name not in (best, row.chosen))
        lines.append(
            f"| {row.what} | {row.chosen} | {spread(row.ours)} | {best} | {spread(row.theirs)} | "
            f"**{spread(ratios)}** | ≤ {MOST} | {others} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
