"""What a pocket model says of a prompt's words."""

from __future__ import annotations

import pytest

from kinema.conditioning.pocket import PocketTokenizer, say_unknown

TOKENIZER = PocketTokenizer(("a", "red", "ball"))


def said(*texts):
    events = []
    say_unknown(TOKENIZER, "tiny", texts, events.append)
    return [event.message for event in events]


@pytest.mark.parametrize(
    "text",
    ["\U0001f600\U0001f44d", "?!...", "___", "zeppelin", " zwei Bälle \U0001f388 ", "\N{CJK UNIFIED IDEOGRAPH-7403}"],
)
def test_a_prompt_of_which_no_word_is_known_is_said_in_one_note(text):
    assert said(text) == [f'the prompt "{text.strip()}" holds no word that tiny knows']


def test_single_words_that_are_not_known_are_named_once():
    assert said("a red zeppelin and a zeppelin \U0001f600") == ["tiny was not taught the word(s) zeppelin, and"]
    assert said("a red ball!", "a \U0001f600 ball") == []


def test_nothing_is_said_of_an_empty_prompt():
    assert said("", "  \n") == []


def test_a_note_is_short_and_holds_no_control_characters_whatever_the_prompt():
    for text in ("\x1b[31m!\x07", "!" * 100_000, "a " + " ".join(f"word{i}" for i in range(10_000))):
        (note,) = said(text)
        assert len(note) < 400
        assert note.isprintable()
