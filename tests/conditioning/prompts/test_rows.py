"""Rows of tokens against AUTOMATIC1111's and ComfyUI's own (recorded), and their rules worked out by hand."""

from __future__ import annotations

import pytest

from kinema.conditioning.prompts.rows import rows_of
from kinema.schema import BadRequest


def plain(rows):
    return [([token.id for token in row], [token.weight for token in row]) for row in rows]


def expected(rows):
    return [(row["ids"], [weight for weight, count in row["weights"] for _ in range(count)]) for row in rows]


def test_a1111_rows_equal_the_recorded_ones_token_by_token(recorded, words):
    several = 0
    for each in recorded["prompts"]:
        for text, rows in zip(each["texts"], each["a1111"], strict=False):
            several += len(rows) > 1
            assert plain(rows_of("a1111", text, words())) == expected(rows), text
    assert several > 30


def test_comfy_rows_equal_the_recorded_ones_token_by_token(recorded, words):
    several = 0
    for each in recorded["prompts"]:
        several += len(each["comfy"]) > 1
        assert plain(rows_of("comfy", each["prompt"], words())) == expected(each["comfy"]), each["prompt"]
    assert several > 10


def lengths(syntax, text, words):
    return [len(row) for row in rows_of(syntax, text, words)]


def test_a_full_row_ends_after_its_last_comma_if_that_is_near(words):
    """Rows of 30 tokens; "cat" is one token and "," another."""
    near, far = "cat " * 12 + ", " + "cat " * 20, "cat " * 5 + ", " + "cat " * 30
    assert lengths("a1111", near, words(30)) == [13, 20]
    assert lengths("a1111", far, words(30)) == [30, 6]
    assert lengths("a1111", "cat " * 30 + ", cat", words(30)) == [30, 2]
    assert lengths("a1111", "cat BREAK BREAK cat BREAK", words(30)) == [1, 0, 1]
    assert lengths("a1111", "", words(30)) == [0]


def test_comfy_keeps_text_of_one_weight_together_up_to_seven_tokens(words):
    assert lengths("comfy", "cat " * 25 + "(" + "cat " * 7 + ":1.2)", words(30)) == [25, 7]
    assert lengths("comfy", "cat " * 25 + "(" + "cat " * 8 + ":1.2)", words(30)) == [30, 3]
    assert lengths("comfy", "cat " * 9, words(5)) == [5, 4]
    assert lengths("comfy", "", words(30)) == [0]


def test_plain_prompts_are_cut_to_a_row(words):
    assert lengths("plain", "(cat:1.2) " + "cat " * 40, words(30)) == [30]
    assert {token.weight for row in rows_of("plain", "(cat:1.2)", words(30)) for token in row} == {1.0}


@pytest.mark.parametrize(
    ("syntax", "text", "kept"),
    [
        ("a1111", "dog redcat, dog", ["dog", 0, 1, ",", "dog"]),
        ("a1111", "(redcat:1.2)", [0, 1]),
        ("comfy", "dog embedding:redcat, dog", ["dog", 0, 1, ",", "dog"]),
        ("comfy", "(embedding:redcat:1.2)", [0, 1]),
        ("comfy", "dog redcat", ["dog", "re", "d", "cat"]),
    ],
)
def test_an_embedding_takes_the_place_of_its_name(syntax, text, kept, words, recorded):
    names = {number: name.removesuffix("</w>") for name, number in recorded["vocabulary"].items()}
    (row,) = rows_of(syntax, text, words(redcat=2))
    assert [token.vector[1] if token.vector else names[token.id] for token in row] == kept
    if ":1.2)" in text:
        assert {token.weight for token in row} == {1.2}


def test_an_embedding_is_not_divided_between_rows(words):
    rows = rows_of("a1111", "cat " * 28 + "redcat", words(30, redcat=4))
    assert [len(row) for row in rows] == [28, 4]
    assert [token.vector for token in rows[1]] == [("redcat", at) for at in range(4)]


def test_an_unknown_embedding_raises_with_the_option(words):
    with pytest.raises(BadRequest, match="embedding:nine; give the folder that has it with --embeddings FOLDER"):
        rows_of("comfy", "a embedding:nine", words())
    with pytest.raises(BadRequest, match="no embedding 'redcst'; did you mean redcat"):
        rows_of("comfy", "a embedding:redcst", words(redcat=1))
