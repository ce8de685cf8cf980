"""Training, tuning and evaluation have no caption in common, whatever the grammar (docs/decisions/0015)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from kinema.data.playroom import COLOURS, LETTERS, MOTIONS, SHAPES, grammar, parse, phrase, prompts
from kinema.data.playroom.grammar import COMMON_SYNONYM, combinations, in_split, random_meaning, share_of

SHARES = {"train": 0.7, "tuning": 0.1, "evaluation": 0.2}
COMBINATIONS = [(c, glyph, m) for c in COLOURS for glyph in (*SHAPES[:-1], *LETTERS) for m in MOTIONS]
DRAWS = 10_000
EVIDENCE = Path(__file__).resolve().parents[3] / "docs" / "evidence"

EVALUATION_RED_BALL = ["slides left", "bounces", "grows"]


def drawn(split: str, of: str, draws: int = DRAWS) -> set[str]:
    """Captions as training draws them, with synonyms."""
    rng = np.random.default_rng(5)
    return {phrase(random_meaning(rng, of, split, {}), rng, COMMON_SYNONYM) for _ in range(draws)}


def said(captions: Iterable[str]) -> set[tuple[str, str, str]]:
    """The combinations of colour, outline and motion in these captions."""
    return {each for caption in captions if (meaning := parse(caption)) for each in combinations(meaning)}


def common(one: Iterable[str], other: Iterable[str]) -> set[str]:
    return set(one) & set(other)


@pytest.mark.parametrize("of", ["simple", "full"])
def test_no_two_shares_have_a_caption_in_common(of: str):
    train, tuning, evaluation = (drawn(share, of) for share in SHARES)
    assert not common(train, tuning)
    assert not common(train, evaluation)
    assert not common(tuning, evaluation)
    assert not common(train, prompts(128, 0, of, "tuning"))
    assert not common([*train, *tuning], prompts(128, 0, of, "evaluation"))


def test_training_never_says_in_other_words_what_an_evaluation_prompt_says():
    asked = said(prompts(128, 0, "simple", "evaluation"))
    for of in ("simple", "full"):  # the full grammar adds sizes, speeds, backgrounds and second objects
        assert not asked & said(drawn("train", of))


def test_every_meaning_is_in_one_share():
    rng = np.random.default_rng(6)
    for _ in range(DRAWS):
        meaning = random_meaning(rng, "full", "all", {})
        shares = [share for share in SHARES if in_split(meaning, share)]
        assert len(shares) == 1
        assert in_split(meaning, "train-v1") == (shares != ["tuning"])


def test_a_split_that_lets_evaluation_into_training_would_be_found(monkeypatch: pytest.MonkeyPatch):
    """Two faults: training on the old split, and a split of strings, which other wordings pass."""
    asked = prompts(128, 0, "simple", "evaluation")
    assert len(common(drawn("train-v1", "simple"), asked)) > 64

    def by_wording(meaning: grammar.Meaning, split: str) -> bool:
        return share_of("", "", phrase(meaning)) == split  # the hash of the whole caption

    monkeypatch.setattr(grammar, "in_split", by_wording)
    assert not common(drawn("evaluation", "full"), drawn("train", "full"))
    assert said(drawn("evaluation", "full")) & said(drawn("train", "full"))


@pytest.mark.parametrize("share", SHARES)
def test_the_shares_have_their_sizes(share: str):
    """Within four standard deviations of a binomial."""
    size, chance = len(COMBINATIONS), SHARES[share]
    found = sum(share_of(*each) == share for each in COMBINATIONS)
    assert abs(found - size * chance) < 4 * math.sqrt(size * chance * (1 - chance))


@pytest.mark.parametrize("seed", [0, 1, 1000])
def test_the_evaluation_set_is_as_large_as_asked_and_covers_the_grammar(seed: int):
    found = prompts(128, seed)
    assert len(found) == 128
    assert len(set(found)) >= 124
    assert found == prompts(128, seed, "simple", "evaluation")
    meanings = [meaning for prompt in found if (meaning := parse(prompt))]
    assert len(meanings) == 128
    assert {meaning.colour for meaning in meanings} == set(COLOURS)
    assert {meaning.shape for meaning in meanings} == set(SHAPES)
    assert {meaning.motion for meaning in meanings} == set(MOTIONS)
    assert all(in_split(meaning, "evaluation") for meaning in meanings)


def test_the_evaluation_share_is_stable():
    assert [m for m in MOTIONS if share_of("red", "ball", m) == "evaluation"] == EVALUATION_RED_BALL


def test_the_tuning_set_is_the_one_that_settings_were_chosen_on():
    clips = json.loads((EVIDENCE / "zoetrope.json").read_text(encoding="utf-8"))["clips"]
    assert prompts(128, 0, "simple", "tuning") == [clip["prompt"] for clip in clips[:128]]


def test_prompts_of_evaluation_and_tuning_stay_apart_at_any_seed():
    tuning = set(prompts(128, 0, "simple", "tuning"))
    assert not any(common(tuning, prompts(64, seed, "simple", "evaluation")) for seed in range(20))
    old = prompts(64, 1000, "simple", "tuning")  # the "fresh" prompts of before
    assert sum(prompt in tuning for prompt in old) == 55
