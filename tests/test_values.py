"""Matching values against annotations, and describing annotations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from kinema.values import counted, expected, matches, mismatch


@dataclass
class Ball:
    colour: str
    size: float | None = None


@pytest.mark.parametrize(
    ("hint", "right", "wrong", "words"),
    [
        (int, [0, -3], [True, 1.0, "1", None], "a whole number"),
        (float, [0, 1.5, float("inf")], [True, "1", None, 10**400], "a number"),
        (bool, [True], [0, 1, "true"], "true or false"),
        (str | None, ["", None], [b"", 3], "text"),
        (int | float, [1, 1.5], [True, "a"], "a whole number or a number"),
        (Literal["crop", "pad"], ["crop"], ["cut", ["crop"], None], "crop or pad"),
        (Literal["a", "b", "c"], ["c"], [], "a, b or c"),
        (tuple[float, float], [(1, 2.5), [1, 2]], [(1,), (1, 2, 3), (1, "2"), 1], "2 numbers"),
        (tuple[str, ...], [(), ("a", "b"), ["a"]], [("a", 1), "ab"], "texts"),
        (tuple[tuple[str, int], ...], [(("a", 1),), [["a", 1]]], [(("a", "b"),)], "values"),
        (Mapping[str, float], [{}, {"a": 1}], [{1: 1}, {"a": "b"}, [1]], "names with numbers"),
        (list[int], [[], [1]], [[True], ["a"], (1,), None], "a list of whole numbers"),
        (
            list[Ball],
            [[], [{"colour": "red"}, {"colour": "blue", "size": 1}], [{"colour": "red", "more": 1}]],
            [[{}], [{"colour": None}], [{"colour": "red", "size": "big"}], ["red"], {}],
            "a list of tables",
        ),
        (dict[str, float | None], [{"a": None}], [{"a": True}], "names with values"),
        (Any, [object()], [], "another value"),
    ],
)
def test_annotations_match_their_values_and_are_described(hint: Any, right: list, wrong: list, words: str) -> None:
    assert all(matches(value, hint) for value in right)
    assert not any(matches(value, hint) for value in wrong)
    assert expected(hint) == words


def test_the_first_mismatch_with_a_dataclass_is_described() -> None:
    assert mismatch(Ball, {"colour": "red", "size": None, "other": 3}) == ""
    assert mismatch(Ball, {"colour": None}) == "its colour is null; expected text"
    assert mismatch(Ball, {"size": "big"}) == "its size is 'big'; expected a number"


def test_counts_use_singular_and_plural() -> None:
    assert [counted(n, "step") for n in (0, 1, 2, 2000)] == ["0 steps", "1 step", "2 steps", "2,000 steps"]
