"""A cost model of products on a CPU: how many tokens a feed-forward layer computes at a time.

A layer computes its tokens in parts. Each part calls three products and reads all weights again, from a core's cache,
the shared cache or memory; activations beyond a quarter of the shared cache cost more. The model adds these times to
those of the multiplications, and the cheapest part size is used. MKL, which computes float32 on Intel CPUs, copies the
weights into an order of its own at each call as well. Only ratios of the constants matter. They were set by hand from
the rates of one Zen 5 EPYC at widths from 64 to 1,280, and `PACKED` from one Ice Lake Xeon (docs/notes/0006-speed.md);
``python -m benchmarks.choices`` times the choice against all others.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from kinema.nn.linear import mkl_is_fast

Branches = Literal["one by one", "in parallel", "in one batch"]
"""How guidance branches run: see `kinema.diffusion.guidance`."""

CALL = 40e-6
"""Seconds for the three products of a part, beyond their multiplications."""
RATE = {4: 220e9, 2: 440e9}
"""Operations per second and core, by bytes of a number."""
SHARED, MEMORY = 40e9, 19e9
"""Bytes per second of the shared cache and of memory."""
OWN_CACHE, SHARED_CACHE = 2**20, 2**25
"""Bytes of the caches where the system does not say: those of common servers."""
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
"""Where Linux describes them."""
BATCHED = 16
"""Networks whose weights are this many times the shared cache run guidance branches as one batch on an odd number of
threads, and on Intel CPUs on any. A guess between networks where a batch is known to be slower and those of the
published width, where it is faster."""
OVERLAP = 0.08
"""Share of a part's multiplications in whose time its weights are read."""
SPILL = 2.3e9
"""Bytes per second and core of activations beyond a quarter of the shared cache: their pages are new each time."""
PACKED = 6e9
"""Bytes of weights per second and core that MKL copies into its own order."""
FEWEST = 32


@cache
def caches() -> tuple[int, int]:
    """Return the bytes of the largest cache of one core and of the largest shared one."""
    folders = sorted(CACHES.glob("index*"))
    try:
        found = {int((f / "level").read_text()): _bytes((f / "size").read_text()) for f in folders}
    except (OSError, ValueError):
        found = {}
    if not found:
        return OWN_CACHE, SHARED_CACHE
    own = found.get(2, OWN_CACHE)
    shared = max(found.get(3, own), own)
    return own, shared


def _bytes(text: str) -> int:
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    text = text.strip()
    return int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text)


@cache
def rows_at_once(rows: int, width: int, itemsize: int, threads: int) -> int:
    """Return the cheapest number of tokens at a time, a power of two or all, of a gated feed-forward layer of four
    times the width for ``rows`` tokens of ``width`` numbers.
    """
    options = [2**k for k in range(FEWEST.bit_length() - 1, rows.bit_length()) if 2**k < rows]
    return min([*options, rows], key=lambda each: seconds(rows, each, width, itemsize, threads))


def seconds(rows: int, part: int, width: int, itemsize: int, threads: int) -> float:
    """Estimate the seconds of a feed-forward layer that computes ``part`` of its ``rows`` tokens at a time."""
    own, shared = caches()
    weights, hidden = 12 * width**2 * itemsize, 8 * width * part * itemsize

    compute = 24 * width**2 / (RATE[itemsize] * threads) * part
    # Weights are read while the products run, for a share of their time.
    reading = 0 if weights <= own * threads else weights / (SHARED * threads if weights <= shared else MEMORY)
    waiting = max(0, reading - OVERLAP * compute)
    packing = weights / (PACKED * threads) if itemsize == 4 and mkl_is_fast() else 0
    spilled = max(0, hidden - shared / 4) / (SPILL * threads)
    return rows / part * compute + -(-rows // part) * (CALL + waiting + packing + spilled)


def order_of_branches(weights: int, itemsize: int, threads: int) -> Branches:
    """Return how to run the guidance branches of a network with ``weights`` bytes of weights, ``itemsize`` a number.

    With an even number of threads, two branches run at the same time on half of the threads each: they then wait for
    each other once instead of at every operation's end. Otherwise, if the weights are far larger than the shared cache,
    one batch reads them once instead of twice. On Intel CPUs large networks run as one batch in float32 with any number
    of threads (measured with one and two). A batch of a small network would be faster there too, but rounds differently
    from separate branches, which is how a network runs when memory is short.
    """
    large = weights > BATCHED * caches()[1]
    if threads % 2 == 0 and not (large and itemsize == 4 and mkl_is_fast()):
        return "in parallel"
    return "in one batch" if large else "one by one"
