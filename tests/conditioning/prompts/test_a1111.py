"""AUTOMATIC1111's weights and schedules, against its own parser (recorded) and examples worked out by hand."""

from __future__ import annotations

import time

import pytest

from kinema.conditioning.prompts.a1111 import Part, parts, pieces, schedule_ignored
from kinema.conditioning.prompts.pieces import BREAK, Piece
from kinema.schema import BadRequest

AMBIGUOUS = {71, 191}
"""Recorded prompts with unmatched brackets that AUTOMATIC1111's grammar reads in two ways; releases of its parser
library differ in which they choose."""


def weighted(text: str) -> list[tuple[str, float]]:
    return [(piece.text, pytest.approx(piece.weight)) for piece in pieces(text) if piece is not BREAK]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [("a cat", 1)]),
        ("a (cat:1.3) on", [("a ", 1), ("cat", 1.3), (" on", 1)]),
        ("a ((cat))", [("a ", 1), ("cat", 1.21)]),
        ("a [cat]", [("a ", 1), ("cat", 1 / 1.1)]),
        ("(a (cat:1.3) b)", [("a ", 1.1), ("cat", 1.43), (" b", 1.1)]),
        ("(a)(b)", [("ab", 1.1)]),
        ("(open", [("open", 1.1)]),
        ("shut) a:1.3)", [("shut) a:1.3)", 1)]),
        (r"\(a\) \[b\] \\", [(r"(a) [b] \ ".rstrip(), 1)]),
        ("(a: 1.5 )", [("a", 1.5)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:-1)", [("a", -1)]),
        ("", []),
    ],
)
def test_weights(text, expected):
    assert weighted(text) == expected


def test_break_starts_a_row_also_in_brackets():
    assert [piece and piece.text for piece in pieces("a BREAK  b")] == ["a", None, "b"]
    assert [piece and (piece.text, piece.weight) for piece in pieces("(a BREAK b:2)")] == [("a", 2), None, ("b", 2)]
    assert [piece.text for piece in pieces("BREAKS")] == ["BREAKS"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [(10, "a cat")]),
        ("[a:b:0.5]", [(5, "a"), (10, "b")]),
        ("[a:b:3] c", [(3, "a c"), (10, "b c")]),
        ("[b:0.3]", [(3, ""), (10, "b")]),
        ("[a::.7]", [(7, "a"), (10, "")]),
        ("[a:b:1.0]", [(10, "a")]),
        ("[a:b:1]", [(1, "a"), (10, "b")]),
        ("[a:b:0]", [(10, "b")]),
        ("[a:b:99]", [(10, "a")]),
        ("[a:[b:c:0.5]:0.2]", [(2, "a"), (5, "b"), (10, "c")]),
        ("[(a:1.2):b:0.5]", [(5, "(a:1.2)"), (10, "b")]),
        ("([a:b:0.5]:1.3)", [(5, "(a:1.3)"), (10, "(b:1.3)")]),
        ("[[a]:b:0.5]", [(5, "[a]"), (10, "b")]),
        ("[a:b]", [(10, "[a:b]")]),
        ("[a:b:c:3]", [(10, "[a:b:c:3]")]),
        ("[ (a:b:c) [d:e:3]", [(3, "[ (a:b:c) d"), (10, "[ (a:b:c) e")]),
        ("[a:b:0.5] | c", [(10, "[a:b:0.5] | c")]),
        ("[a:b:0.5] \\", [(10, "[a:b:0.5] \\")]),
    ],
)
def test_schedules_of_ten_steps(text, expected):
    assert [(part.last, part.text) for part in parts(text, 10)] == expected


def test_alternatives_change_at_every_step():
    assert parts("[a|b] [c|d|]", 4) == [Part(1, "a c"), Part(2, "b d"), Part(3, "a "), Part(4, "b c")]
    assert [part.text for part in parts("[[a|b]|c]", 4)] == ["a", "c", "a", "c"]


def test_an_ignored_schedule_is_reported():
    assert schedule_ignored("[a:b:0.5] | c")
    assert not schedule_ignored("a | c")
    assert not schedule_ignored("[a|b] [a:b:0.5] \\| c")


def test_schedules_equal_the_recorded_ones(recorded):
    changing, different = 0, set()
    for number, each in enumerate(recorded["prompts"]):
        expected = [Part(step, each["texts"][at]) for step, at in each["schedule"]]
        changing += len(expected) > 1
        if parts(each["prompt"], recorded["steps"]) != expected:
            different.add(number)
    assert different == AMBIGUOUS
    assert changing > 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(a:1.2.3)", r"has the weight 1\.2\.3; expected a number such as 1\.3"),
        ("(a:...)", "has the weight"),
        (f"(a:{'9' * 400})", "has the weight"),
        ("(a:101)", "a weight of 101; expected -100 to 100"),
        ("(" * 49 + "a", "a weight of 106"),
        ("(" * 65 + "a", "more than 64 open brackets"),
        ("[" * 100_000, "more than 64 open brackets"),
        ("(a" * 100_000, "more than 64 open brackets"),
    ],
)
def test_weights_that_are_no_numbers_or_too_large_and_deep_brackets_raise(text, message):
    with pytest.raises(BadRequest, match=message):
        pieces(text)


def test_hostile_schedules_raise_or_are_read_quickly():
    with pytest.raises(BadRequest, match="more than 64 open brackets"):
        parts("[" * 100_000, 10)
    with pytest.raises(BadRequest, match="the prompt changes at"):
        parts("[a:b:1e309]", 10)
    with pytest.raises(BadRequest, match="more than 256 different texts"):
        parts(" ".join(f"[{'|'.join(map(str, range(n)))}]" for n in (17, 19, 23)), 10_000)
    assert len(parts("[a|b]" * 1000, 10_000)) == 10_000
    assert parts("]" * 100_000, 10) == [Part(10, "]" * 100_000)]
    assert parts("a\0b", 10) == [Part(10, "a\0b")]
    assert pieces("[]" * 50_000) == []


def test_long_runs_of_signs_and_white_space_take_linear_time():
    """A quadratic pattern takes minutes on each."""
    long = 100_000
    begun = time.process_time()
    assert pieces("a" + " " * long + "BREAK" + "\n" * long + "b") == [Piece("a"), BREAK, Piece("b")]
    assert pieces(" " * long) == [Piece(" " * long)]
    assert pieces(":" + " " * long) == [Piece(":" + " " * long)]
    assert not schedule_ignored("[)" * long + "\\")
    assert schedule_ignored("[)" * long + "[a:b:0.5]\\")
    assert time.process_time() - begun < 5
