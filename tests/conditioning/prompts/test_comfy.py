"""ComfyUI's weights, worked out by hand; `test_rows` compares them with the recorded ones."""

from __future__ import annotations

import pytest

from kinema.conditioning.prompts.comfy import pieces
from kinema.schema import BadRequest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [("a cat", 1)]),
        ("a (cat:1.3) on", [("a ", 1), ("cat", 1.3), (" on", 1)]),
        ("a ((cat))", [("a ", 1), ("cat", 1.21)]),
        ("(a (cat:1.3) b)", [("a ", 1.1), ("cat", 1.3), (" b", 1.1)]),
        ("((cat:1.3))", [("cat", 1.3)]),
        ("[cat|dog] BREAK", [("[cat|dog] BREAK", 1)]),
        (r"\(a\) (b)", [("(a) ", 1), ("b", 1.1)]),
        ("(open", [("(open", 1)]),
        ("shut) (a)", [("shut) (a)", 1)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(:1.3)", [(":1.3", 1.1)]),
        ("", []),
    ],
)
def test_weights(text, expected):
    assert [(piece.text, pytest.approx(piece.weight)) for piece in pieces(text)] == expected


@pytest.mark.parametrize("number", ["nan", "inf", "-infinity", "1e309"])
def test_weights_that_are_not_finite_raise(number):
    with pytest.raises(BadRequest, match="expected a number such as 1.3"):
        pieces(f"a (cat:{number})")


def test_hostile_brackets_raise_or_are_text():
    with pytest.raises(BadRequest, match="more than 64 open brackets"):
        pieces("(" * 100_000 + "a" + ")" * 100_000)
    with pytest.raises(BadRequest, match="a weight of 101"):
        pieces("(a:101)")
    assert [piece.text for piece in pieces("(" * 100_000)] == ["(" * 100_000]
    assert [piece.text for piece in pieces("a\0b")] == ["ab"]
