"""Balanced lists of prompts for tuning and evaluation, in canonical wording."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from kinema.data.playroom.grammar import (
    COLOURS,
    LETTERS,
    MOTIONS,
    SHAPES,
    Meaning,
    direction_of,
    in_split,
    phrase,
    random_meaning,
)
from kinema.schema import BadRequest

if TYPE_CHECKING:
    from kinema.data.playroom.grammar import Grammar, Split


def prompts(count: int, seed: int = 0, grammar: Grammar = "simple", split: Split = "evaluation") -> list[str]:
    """``count`` captions of the split in canonical wording, the same for the same arguments.

    Shapes alternate (letters are one class of seven, with uniformly sampled letters), half of the
    motions have a direction, and colours, motions and captions are as balanced as the split allows,
    with repetitions only if unavoidable. Raises ``BadRequest`` for a negative count.
    """
    if count < 0:
        raise BadRequest(f"playroom: count is {count}; expected at least 0")
    rng = np.random.default_rng([seed, 7919])
    used: Counter[str] = Counter()
    found: list[str] = []
    for i in range(count):
        shape = SHAPES[i % len(SHAPES)]
        if grammar == "simple":
            meaning = _least_used(rng, used, shape, split)
        else:
            meaning = random_meaning(rng, grammar, split, {"colour": COLOURS[(i + i // 7) % 8], "shape": shape})
        found.append(phrase(meaning))
        used.update([found[-1], meaning.colour, meaning.motion])
    return [found[j] for j in rng.permutation(count)]


def _least_used(rng: np.random.Generator, used: Counter[str], shape: str, split: Split) -> Meaning:
    directed = rng.random() < 0.5
    choices = [meaning for meaning in _simple_meanings(shape, split) if (meaning.direction is not None) == directed]
    shuffled = [choices[i] for i in rng.permutation(len(choices))]
    return min(shuffled, key=lambda m: (used[phrase(m)], used[m.colour] + used[m.motion] / 3))


@lru_cache(maxsize=32)
def _simple_meanings(shape: str, split: Split) -> list[Meaning]:
    """Every simple meaning of a shape in the split."""
    letters = LETTERS if shape == "letter" else (None,)
    meanings = [
        Meaning(colour, shape, motion, letter, direction_of(motion))
        for letter in letters
        for colour in COLOURS
        for motion in MOTIONS
    ]
    return [meaning for meaning in meanings if in_split(meaning, split)]
