"""README's figures of speed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.cards.figures import Passage, decimals, read

README = "README.md"
RESULTS = "benchmarks/results/{}.json"
ZEN5, INTEL, AVX2 = "avx512_bf16", "avx512_f", "avx2"
FIRST = "2026-11-23-cpu2-avx512_bf16-{}"
SVD, ANIMATEDIFF = "svd", "animatediff"


def speed() -> Iterator[Passage]:
    """The section "Speed"."""
    yield from published_widths()
    yield from other_processors()
    yield from opensora()
    yield from reduced()


def published_widths() -> Iterator[Passage]:
    """The table of guided steps, and SVD's decoder."""
    for family, label in (
        (SVD, "Stable Video Diffusion (1.52 billion parameters)"),
        (ANIMATEDIFF, "AnimateDiff v2 with SD 1.5"),
    ):
        figures, cells = {}, []
        for dtype in ("fp32", "bf16"):
            for threads in (2, 1):
                name = f"{dtype}_{threads}"
                figures |= _with_shares(name, f"2026-11-30-cpu{threads}-{ZEN5}-{family}-full", f"step, {dtype}")
                cells.append(_cell(name))
        yield Passage(README, f"| {label} | {' | '.join(cells)} |", figures)
    decoder = f"2026-11-30-cpu2-{ZEN5}-svd-full-decode"
    yield Passage(
        README,
        f"SVD's decoder of 128 to 512 channels is {_cell('fp32')} in fp32 and {_cell('bf16')} in bf16",
        _with_shares("fp32", decoder, "decode, fp32") | _with_shares("bf16", decoder, "decode, bf16"),
    )


def other_processors() -> Iterator[Passage]:
    zen3 = {
        family: _with_shares(family, f"2026-11-30-cpu2-{AVX2}-{family}-full", "step, fp32")
        for family in (SVD, ANIMATEDIFF)
    }
    yield Passage(
        README,
        f"the float32 step on two threads is {_cell(SVD)} for SVD and {_cell(ANIMATEDIFF)} for AnimateDiff",
        zen3[SVD] | zen3[ANIMATEDIFF],
    )
    figures = {}
    for family in (SVD, ANIMATEDIFF):
        for threads in (2, 1):
            file = f"2026-12-01-cpu{threads}-{INTEL}-{family}-full"
            figures |= _with_shares(f"{family}_{threads}", file, "step, fp32")
            figures |= _with_shares(f"{family}_decode_{threads}", f"{file}-decode", "decode, fp32")
    yield Passage(
        README,
        f"bfloat16) it is {_cell('svd_2')} on two threads and {_cell('svd_1')} on one for SVD, "
        f"{_cell('animatediff_2')} and {_cell('animatediff_1')} for AnimateDiff",
        figures,
    )
    yield Passage(
        README,
        f"Its decoders: SVD {_cell('svd_decode_2')} on two threads and {_cell('svd_decode_1')} on one, AnimateDiff "
        f"{_cell('animatediff_decode_2')} and {_cell('animatediff_decode_1')}, for",
        figures,
    )


def opensora() -> Iterator[Passage]:
    """The ranges over blocks and lengths."""
    rows = _rows("2026-11-29-cpu2-avx512_bf16-opensora")
    figures = {}
    for rival, short in (("beside diffusers' Flux", "flux"), ("beside the original", "original")):
        for dtype in ("fp32", "bf16"):
            found = [_ratio(row) for what, row in rows.items() if rival in what and what.endswith(dtype)]
            figures |= {
                f"{short}_{dtype}_least": decimals(min(found), 2),
                f"{short}_{dtype}_most": decimals(max(found), 2),
            }
    yield Passage(
        README,
        "| Open-Sora 2.0, blocks and model, against diffusers' Flux, on 29 November | {flux_fp32_least} to "
        "{flux_fp32_most} | | {flux_bf16_least} to {flux_bf16_most} | |",
        figures,
    )
    yield Passage(
        README,
        "Against Open-Sora's original modules the ratios are {original_fp32_least} to {original_fp32_most} in fp32 and "
        "{original_bf16_least} to {original_bf16_most} in bf16.",
        figures,
    )


def reduced() -> Iterator[Passage]:
    """The table of small networks."""
    svd, animatediff = (_rows(FIRST.format(family)) for family in (SVD, ANIMATEDIFF))
    cold, compiled = "cold start: process, imports, loading, one step", "step, ours compiled, theirs eager, bf16"
    columns = {
        "step_fp32": "step, fp32",
        "step_bf16": "step, bf16",
        "decode_fp32": "decode, fp32",
        "decode_bf16": "decode, bf16",
        "memory_fp32": "decode, peak extra memory, fp32",
        "memory_bf16": "decode, peak extra memory, bf16",
        "cold": cold,
        "compiled": compiled,
    }
    again = {"again": decimals(_ratio(_rows(FIRST.format("svd-compiled"))[compiled]), 1)}
    yield Passage(
        README,
        "| Stable Video Diffusion | {step_fp32} | {step_bf16} | {compiled} and {again} (two runs) | {decode_fp32} | "
        "{decode_bf16} | {memory_fp32} | {memory_bf16} | {cold} |",
        {name: decimals(_ratio(svd[what]), 1) for name, what in columns.items()} | again,
    )
    yield Passage(
        README,
        "| AnimateDiff | {step_fp32} | {step_bf16} | | | | | | {cold} |",
        {name: decimals(_ratio(animatediff[columns[name]]), 1) for name in ("step_fp32", "step_bf16", "cold")},
    )


def _cell(name: str) -> str:
    return f"{{{name}}} ({{{name}_theirs}}, {{{name}_ours}})"


def _with_shares(name: str, file: str, what: str) -> dict[str, str]:
    """A ratio and both shares of the attainable."""
    row = _rows(file)[what]
    shares = {f"{name}_{side}": decimals(row["shares"][side], 2) for side in ("theirs", "ours")}
    return {name: decimals(_ratio(row), 2)} | shares


def _rows(file: str) -> dict[str, Mapping[str, Any]]:
    return {row["what"]: row for row in read(RESULTS.format(file))["rows"]}


def _ratio(row: Mapping[str, Any]) -> float:
    """Diffusers' seconds or bytes over Kinema's, the median of the pairs."""
    return statistics.median(a / b for a, b in zip(row["theirs"], row["ours"], strict=True))
