"""Captions and meanings of the playroom."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.data import playroom
from kinema.data.playroom import Meaning, NamedObject, parse, phrase, prompts
from kinema.data.playroom.grammar import combinations, in_split, random_meaning, share_of
from kinema.schema import BadRequest

seeds = st.integers(0, 2**31)
TUNING_RED_BALL = ["slides up"]


def meaning_of(seed: int, split: str = "all", **fixed: str) -> Meaning:
    return random_meaning(np.random.default_rng(seed), "full", split, fixed)


def test_the_simplest_caption_is_article_colour_shape_motion():
    assert phrase(Meaning("red", "ball", "rolls right", direction="right")) == "a red ball rolls right"
    assert phrase(Meaning("orange", "letter", "spins", "A")) == "an orange letter A spins"


@settings(max_examples=200, deadline=None)
@given(seeds)
def test_parse_inverts_phrase(seed: int):
    meaning = meaning_of(seed)
    assert parse(phrase(meaning)) == meaning


@settings(max_examples=200, deadline=None)
@given(seeds)
def test_parse_inverts_phrase_with_synonyms(seed: int):
    meaning = meaning_of(seed)
    assert parse(phrase(meaning, np.random.default_rng(seed + 1), synonyms=1.0)) == meaning


@settings(max_examples=200, deadline=None)
@given(seeds)
def test_the_vocabulary_contains_every_word_of_every_caption(seed: int):
    text = phrase(meaning_of(seed), np.random.default_rng(seed), synonyms=0.5)
    assert set(text.split(" ")) <= set(playroom.vocabulary())


def test_every_word_of_the_vocabulary_is_used():
    used: set[str] = set()
    for seed in range(6000):
        used.update(phrase(meaning_of(seed), np.random.default_rng(seed), synonyms=0.6).split(" "))
    assert set(playroom.vocabulary()) == used


@pytest.mark.parametrize(
    ("caption", "meaning"),
    [
        ("A red circle rolling to the right.", Meaning("red", "ball", "rolls right", direction="right")),
        ("the violet cube spinning", Meaning("purple", "box", "spins")),
        ("blue letter a hops", Meaning("blue", "letter", "bounces", "A")),
        (
            "a red ball is chasing a blue box",
            Meaning("red", "ball", "chases", relation="chases", second=NamedObject("blue", "box")),
        ),
        ("a small red ball goes left quickly behind a big box", None),
        (
            "a red ball hits a green star right on a plain gray background while the camera zooms in",
            Meaning(
                "red",
                "ball",
                "collides",
                direction="right",
                relation="collides",
                second=NamedObject("green", "star"),
                background="plain grey",
                camera="zooms in",
            ),
        ),
        ("a red ball", None),
        ("a red ball rolls", None),
        ("a red ball spins right", None),
        ("a red letter spins", None),
        ("a pink ball rolls left", None),
        ("a red ball rolls left on a tartan background", None),
        ("", None),
    ],
)
def test_parsing_free_text(caption: str, meaning: Meaning | None):
    assert parse(caption) == meaning


@pytest.mark.parametrize("grammar", ["simple", "full"])
def test_training_clips_contain_only_combinations_of_the_training_share(grammar: str):
    for seed in range(400):
        scene = playroom.sample(seed, grammar=grammar, frames=2, height=8, width=8).scene
        for track in scene.objects:
            assert track.motion == "still" or share_of(track.colour, track.glyph, track.motion) == "train"


@pytest.mark.parametrize("share", ["tuning", "evaluation"])
def test_simple_clips_of_a_share_contain_only_its_combinations(share: str):
    for seed in range(200):
        scene = playroom.sample(seed, split=share, frames=2, height=8, width=8).scene
        assert share_of(scene.objects[0].colour, scene.objects[0].glyph, scene.objects[0].motion) == share


def test_the_tuning_share_is_stable():
    assert [m for m in playroom.MOTIONS if share_of("red", "ball", m) == "tuning"] == TUNING_RED_BALL


def test_in_a_chase_both_objects_move():
    meaning = Meaning(
        "red", "ball", "chases", direction="left", relation="chases", second=NamedObject("blue", "letter", "B")
    )
    assert ("red", "ball", "moves left") in combinations(meaning)
    assert ("blue", "B", "moves left") in combinations(meaning)


def test_prompts_are_balanced_over_shapes_and_in_the_split():
    found = [parse(prompt) for prompt in prompts(140, 3, "simple", "tuning")]
    assert all(meaning is not None and in_split(meaning, "tuning") for meaning in found)
    assert set(Counter(meaning.shape for meaning in found).values()) == {20}
    assert max(Counter(meaning.colour for meaning in found).values()) <= 28
    directed = sum(meaning.direction is not None for meaning in found)
    assert 50 <= directed <= 90


def test_prompts_repeat_only_if_unavoidable():
    assert len(set(prompts(56, 0, "simple", "train"))) == 56


def test_prompts_of_the_full_grammar_contain_relations_and_backgrounds():
    found = [parse(prompt) for prompt in prompts(64, 0, "full", "train")]
    assert any(meaning.relation for meaning in found)
    assert any(meaning.background for meaning in found)
    assert all(in_split(meaning, "train") for meaning in found)


def test_a_negative_count_is_refused():
    with pytest.raises(BadRequest, match="expected at least 0"):
        prompts(-1)


def test_a_combination_outside_the_split_is_refused():
    motion = TUNING_RED_BALL[0]
    with pytest.raises(BadRequest, match="split"):
        playroom.sample(0, colour="red", shape="ball", motion=motion, split="train")


def test_captions_do_not_depend_on_the_process():
    code = (
        "from kinema.data.playroom import prompts, sample; "
        "print([sample(i, grammar='full', frames=1, height=8, width=8).caption for i in range(8)], prompts(4))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1
    assert texts.pop().startswith("['a")
