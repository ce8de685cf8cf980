"""A sign of a prompt that changes nothing is noted or refused, in every syntax."""

from __future__ import annotations

import pytest

from kinema.conditioning.prompts import a1111, embeddings, lora_tags
from kinema.conditioning.prompts.pieces import BREAK, Piece
from kinema.conditioning.prompts.rows import pieces_of
from kinema.conditioning.prompts.signs import unread
from kinema.schema import BadRequest

SYNTAXES = ("a1111", "comfy", "plain")
READ = {
    "(cat:1.3)": ("a1111", "comfy"),
    "((cat))": ("a1111", "comfy"),
    "(a cat": ("a1111",),
    "[cat]": ("a1111",),
    r"\(cat\)": ("a1111", "comfy"),
    r"\[cat\]": ("a1111",),
    "a BREAK b": ("a1111",),
    "[cat|dog]": ("a1111",),
    "[cat:dog:0.5]": ("a1111",),
    "[cat:0.5]": ("a1111",),
    "[cat::3]": ("a1111",),
    "(a [cat|dog]:1.2)": ("a1111", "comfy"),
    "embedding:cat": ("a1111", "comfy"),
    "<lora:cat:0.8>": SYNTAXES,
}
"""Signs, and the syntaxes that read them."""
WORDS = ("a AND b", "{cat|dog}", "a cat # a comment")
"""Signs of a tool that no syntax here reads."""
NEITHER = {("comfy", "(a cat"), ("plain", "(a cat"), ("comfy", "a cat # a comment"), ("plain", "a cat # a comment")}
"""Text in these syntaxes: a bracket that is not closed, and a number sign."""


def reads(syntax: str, text: str) -> bool:
    """Whether reading gives anything but the text itself at weight 1."""
    named = bool(lora_tags.tags(text)) or (syntax != "plain" and bool(embeddings.signs(text)))
    texts = [part.text for part in a1111.parts(text, 10)] if syntax == "a1111" else [text]
    pieces = [piece for each in texts for piece in pieces_of(syntax, each)]
    return named or pieces != [Piece(text)] or BREAK in pieces


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("text", [*READ, *WORDS])
def test_a_sign_is_read_or_noted_or_refused(syntax: str, text: str) -> None:
    assert (syntax in READ.get(text, ())) == reads(syntax, text)
    if (syntax, text) in NEITHER:
        assert unread(text, syntax) == []
    elif (syntax, text) == ("a1111", "a AND b"):
        with pytest.raises(BadRequest, match="AND in the prompt combines prompts"):
            unread(text, syntax)
    elif not reads(syntax, text):
        assert unread(text, syntax)


def test_a_schedule_that_another_sign_makes_text_of_is_noted() -> None:
    assert len(a1111.parts("a | [cat:dog:0.5]", 10)) == 1
    assert len(unread("a | [cat:dog:0.5]", "a1111")) == 1


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_signs_that_are_read_are_not_noted(syntax: str) -> None:
    whole = [text for text in READ if reads(syntax, text) and "[cat|dog]:1.2" not in text]
    assert whole
    assert unread(" ".join(whole), syntax) == []
