"""Notes on unknown words in prompts of pocket models."""

from __future__ import annotations

import pytest

from kinema.conditioning.pocket import PocketTokenizer, note_unknown_words

TOKENIZER = PocketTokenizer(("a", "red", "ball"))


def notes(*texts):
    events = []
    note_unknown_words(TOKENIZER, "tiny", texts, events.append)
    return [event.message for event in events]


@pytest.mark.parametrize(
    "text",
    ["\U0001f600\U0001f44d", "?!...", "___", "zeppelin", " zwei Bälle \U0001f388 ", "\N{CJK UNIFIED IDEOGRAPH-7403}"],
)
def test_a_prompt_without_known_words_gets_one_note(text):
    assert notes(text) == [f'tiny knows no word of the prompt "{text.strip()}"']


def test_unknown_words_are_named_once():
    assert notes("a red zeppelin and a zeppelin \U0001f600") == ["unknown words for tiny: zeppelin, and"]
    assert notes("a red ball!", "a \U0001f600 ball") == []


def test_an_empty_prompt_gets_no_note():
    assert notes("", "  \n") == []


def test_notes_are_short_and_printable_for_any_prompt():
    for text in ("\x1b[31m!\x07", "!" * 100_000, "a " + " ".join(f"word{i}" for i in range(10_000))):
        (note,) = notes(text)
        assert len(note) < 400
        assert note.isprintable()
