"""Prompt strings of the evaluation are apart from those of training and tuning (docs/evidence/unseen-prompts.csv).

``python -m benchmarks.unseen_prompts check`` draws every training caption of the shipped models; here, each run's first
ones are drawn, and compared with the digests that it stored.
"""

from __future__ import annotations

import csv
import importlib
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from kinema import registry
from kinema.data.playroom import COLOURS, MOTIONS, SHAPES, Playroom, parse, phrase, prompts
from kinema.data.playroom.grammar import combinations, in_split
from kinema.evaluation import measuring, prompt_files

ROOT = Path(__file__).parents[1]
LIST = ROOT / "docs" / "evidence" / "unseen-prompts.csv"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT))
    yield importlib.import_module("benchmarks.unseen_prompts")
    sys.path.remove(str(ROOT))


@pytest.fixture(scope="module")
def runs(script: ModuleType):
    return script.training_runs()


@pytest.fixture(scope="module")
def unseen() -> list[str]:
    return prompt_files.read(LIST)


def test_the_list_is_what_the_rule_gives(script: ModuleType, runs: list) -> None:
    pool = script.candidates(script.tuning_prompts(), script.validation_captions(runs))
    assert script.text_of(script.selected(pool)) == LIST.read_text(encoding="utf-8")


def test_no_shipped_model_was_trained_on_what_a_prompt_says_in_any_words(runs: list, unseen: list[str]) -> None:
    meanings = [meaning for prompt in unseen if (meaning := parse(prompt))]
    splits = {measuring.training_split(name) for name in registry.EMBEDDED} | {run.how.split for run in runs}
    assert splits == {"train", "train-v1"}
    assert not [m for m in meanings for split in splits if in_split(m, split)]
    rows = list(csv.DictReader(LIST.read_text(encoding="utf-8").splitlines()))
    assert {row["trained"] for row in rows} == {"no"}


def test_no_prompt_is_a_string_of_tuning_or_of_validation(script: ModuleType, runs: list, unseen: list[str]) -> None:
    known = script.tuning_prompts() | script.validation_captions(runs)
    assert len(known) > 400
    assert not known & set(unseen)
    # Every list of tuning prompts, at any seed, has canonical sentences alone.
    assert not [prompt for prompt in unseen if (meaning := parse(prompt)) and phrase(meaning) == prompt]


def test_evaluation_prompts_at_any_seed_are_not_of_the_list(unseen: list[str]) -> None:
    for seed in range(20):
        for split in ("tuning", "evaluation", "train"):
            assert not set(unseen) & set(prompts(64, seed, "simple", split))


def test_training_captions_are_those_that_were_checked_and_none_is_of_the_list(
    script: ModuleType, runs: list, unseen: list[str]
) -> None:
    stored = json.loads(script.CAPTIONS.read_text(encoding="utf-8"))["runs"]
    assert {run.name: run.clips for run in runs} == {name: row["captions"] for name, row in stored.items()}
    for run in runs:
        captions = list(run.captions(script.SAMPLE))
        assert script.digest_of(captions) == stored[run.name]["digest_of_first"]
        assert not set(captions) & set(unseen)


def test_a_prompt_that_training_reads_would_be_found(script: ModuleType) -> None:
    run = script.TrainingRun("a run", Playroom("simple"), seed=0, clips=50, batch=2)
    with pytest.raises(SystemExit, match="a run reads 1 of the prompts"):
        script.check([run], {[*run.captions()][-1]})


def test_the_list_is_balanced_and_has_simple_sentences_with_one_synonym(unseen: list[str]) -> None:
    meanings = [meaning for prompt in unseen if (meaning := parse(prompt))]
    assert len({*unseen}) == len(meanings) == 64
    assert len({each for meaning in meanings for each in combinations(meaning)}) == 64
    for names, field, least in ((COLOURS, "colour", 7), (SHAPES, "shape", 9), (MOTIONS, "motion", 2)):
        found = Counter(getattr(meaning, field) for meaning in meanings)
        assert set(found) == set(names)
        assert min(found.values()) >= least
    for meaning in meanings:
        assert (meaning.size, meaning.speed, meaning.background, meaning.camera, meaning.second) == (None,) * 5
