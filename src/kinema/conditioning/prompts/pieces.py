"""Weighted text of a prompt: `a1111` and `comfy` read prompts into pieces, and `rows` turns pieces into tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kinema.bounds import printable
from kinema.schema import BadRequest

MAX_DEPTH = 64
"""Brackets open at a time; each multiplies a weight by 1.1, which 64 times is 446."""
MAX_WEIGHT = 100.0
"""Largest absolute weight; typical weights are 0.5 to 1.5."""
ROUND, SQUARE = 1.1, 1 / 1.1
"""Factors of ``(text)`` and ``[text]``."""


@dataclass(frozen=True)
class Piece:
    """Text of one weight."""

    text: str
    weight: float = 1.0


BREAK = None
"""In place of a piece: the next one starts a row of its own."""


def weight_of(text: str) -> float:
    """Parse a weight as written. Raises BadRequest for one that is not a finite number or is too large."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadRequest(f"the prompt has the weight {printable(text.strip(), 20)}; expected a number such as 1.3")
    return value


def checked(weight: float) -> float:
    """Return the weight of a piece. Raises BadRequest for one out of range."""
    if not abs(weight) <= MAX_WEIGHT:
        raise BadRequest(f"the prompt gives words a weight of {weight:g}; expected {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}")
    return weight


def too_deep() -> BadRequest:
    return BadRequest(f"the prompt has more than {MAX_DEPTH} open brackets; write \\( and \\[ for brackets in text")
