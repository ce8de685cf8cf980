"""Which values an annotation takes, and how it is said in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pytest

from kinema.values import expected, fits


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
        (Any, [object()], [], "another value"),
    ],
)
def test_an_annotation_takes_its_own_values_and_says_them(hint: Any, right: list, wrong: list, words: str) -> None:
    assert all(fits(value, hint) for value in right)
    assert not any(fits(value, hint) for value in wrong)
    assert expected(hint) == words
