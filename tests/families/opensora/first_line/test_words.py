"""Scores at the end of prompts, and the cleaning of captions.

Reference: append_score_to_prompts of hpcaitech/Open-Sora 1.2 (bde3c42) and 1.3 (2ca632a), read; text_preprocessing of
1.2 with ftfy 6.3 and BeautifulSoup 4.15, run on the captions of tools/record_opensora_samplers.py: equal.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from kinema.families.opensora.first_line.cleaning import cleaned
from kinema.families.opensora.first_line.scores import completed_v1_2, completed_v1_3
from kinema.schema import BadRequest


def test_1_2_writes_numbers() -> None:
    found = completed_v1_2("a car", 6.5, 10, "pan left")
    assert found == "a car aesthetic score: 6.5. motion score: 10.0. camera motion: pan left."
    assert completed_v1_2(found, 1.0, 2.0, "static") == found
    assert completed_v1_2("a car", motion=0.25) == "a car motion score: 0.2."
    assert completed_v1_2("motion score: 3. a car", 5.0, 1.0) == "motion score: 3. a car aesthetic score: 5.0."
    assert completed_v1_2("a car") == "a car"


def test_1_3_writes_words() -> None:
    found = completed_v1_3("a car", 5.5, 5, "pan left")
    assert found == "a car The aesthetic score is good. The motion strength is high. camera motion: pan left."
    assert completed_v1_3(found, 1.0, 2.0, "static") == found
    assert completed_v1_3("a car", "lovely", "7") == "a car The aesthetic score is lovely. The motion strength is high."


@pytest.mark.parametrize(
    ("score", "word"),
    [
        (3.99, "terrible"),
        (4, "very poor"),
        (4.5, "poor"),
        (5, "fair"),
        (5.5, "good"),
        (6, "very good"),
        (6.5, "excellent"),
    ],
)
def test_words_of_the_aesthetic_score(score: float, word: str) -> None:
    assert completed_v1_3("", score) == f" The aesthetic score is {word}."


@pytest.mark.parametrize(
    ("score", "word"),
    [(0.49, "very low"), (0.5, "low"), (2, "fair"), (5, "high"), (10, "very high"), (20, "extremely high")],
)
def test_words_of_the_motion_score(score: float, word: str) -> None:
    assert completed_v1_3("", motion=score) == f" The motion strength is {word}."


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_must_be_finite(score: float) -> None:
    for completed in (completed_v1_2, completed_v1_3):
        with pytest.raises(BadRequest, match="expected a finite number"):
            completed("a", score)


def test_captions_are_cleaned_as_in_the_original(recorded: Any) -> None:
    _, told = recorded("text")
    found = {caption: cleaned(caption) for caption in told["captions"]}
    assert found == dict(zip(told["captions"], told["cleaned"], strict=True))
    assert len(set(found.values())) > 30


def test_cleaning_keeps_the_scores_of_both_versions() -> None:
    for completed in (completed_v1_2, completed_v1_3):
        prompt = completed("a car", 6.5, 10, "pan left")
        assert cleaned(prompt) == prompt.lower()
