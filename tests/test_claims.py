"""README and the model cards say what the files of results say that they name (``python -m benchmarks.cards``)."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
CARD = "src/kinema/families/{}/README.md"
SECTIONS = {
    "README.md": ("## The included model", "## Training"),
    CARD.format("zoetrope"): ("### Unseen prompts", "`extra="),
    CARD.format("svd"): ("### Model card of svd-pocket", "## Options of a request"),
    CARD.format("animatediff"): ("### Model card of animatediff-pocket", "## Request options"),
    CARD.format("opensora"): ("### Model card of opensora-pocket", "## Training in buckets"),
    CARD.format("lumiere"): ("### Model card of lumiere-pocket", "    kinema train lumiere/pocket-keyframes"),
}
"""The part of each document whose scores are all passages: where it begins and ends."""
SCORE = re.compile(r"(?<![\w.,×/])\d[\d,]*(?:\.\d+)? %|(?<![\w.,×/-])\d+\.\d+(?![\w/×])|(?<![\w,])\d+ of \d+\b")
STATED = {
    # What cards state of sizes and settings, and figures of documents that they name.
    CARD.format("svd"): ("95 %", "4.94", "9.95", "0.0013", "2.1", "23.9"),
    CARD.format("animatediff"): ("2.69", "1.1"),
    CARD.format("opensora"): ("95 %", "4.93", "9.88", "2.0", "0.7"),
    CARD.format("lumiere"): ("2.9", "3 of 4", "95 %", "1.5"),
    CARD.format("zoetrope"): ("95 %", "1 of 8", "1 of 7", "1 of 26", "1 of 4", "1 of 10"),
}


@pytest.fixture(scope="module")
def figures():
    sys.path.insert(0, str(ROOT))
    yield importlib.import_module("benchmarks.cards.figures")
    sys.path.remove(str(ROOT))


@pytest.fixture(scope="module")
def passages(figures: ModuleType) -> list:
    return list(importlib.import_module("benchmarks.cards.passages").every())


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def test_every_figure_is_that_of_its_file(passages: list) -> None:
    assert len(passages) > 60
    assert not [fault for passage in passages for fault in passage.faults(text_of(passage.document))]


def test_another_digit_in_a_document_is_found(passages: list) -> None:
    for passage in passages:
        text = text_of(passage.document)
        match = passage.found(text)
        assert match is not None
        for group in range(1, len(passage.names) + 1):
            digit = re.search(r"\d", match[group])
            assert digit is not None
            at = match.start(group) + digit.start()
            other = text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :]
            assert len(passage.faults(other)) == 1


def test_another_figure_in_a_file_is_found(passages: list, figures: ModuleType) -> None:
    for passage in passages:
        for name in passage.names:
            changed = figures.Passage(passage.document, passage.template, {**passage.figures, name: "987654"})
            assert changed.faults(text_of(passage.document))
            assert not changed.faults(changed.filled(text_of(passage.document)))


@pytest.mark.parametrize("document", SECTIONS)
def test_no_score_is_outside_of_a_passage(passages: list, document: str) -> None:
    text = text_of(document)
    for passage in passages:
        if passage.document == document and (match := passage.found(text)):
            text = text[: match.start()] + "·" * len(match[0]) + text[match.end() :]
    begin, end = SECTIONS[document]
    part = text[text.index(begin) : text.index(end)]
    part = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|arXiv [\d.]+", "", part, flags=re.DOTALL)
    loose = [score for score in SCORE.findall(part) if score not in STATED.get(document, ())]
    assert not loose


@pytest.mark.parametrize("document", SECTIONS)
def test_every_document_names_commands_and_files_that_exist(document: str) -> None:
    begin, end = SECTIONS[document]
    text = text_of(document)
    part = text[text.index(begin) : text.index(end)]
    files = re.findall(r"`?((?:docs|benchmarks)/[\w/.-]+\.(?:json|csv|png|md|py))", part)
    assert any(name.endswith(".json") for name in files)
    assert not [name for name in files if not (ROOT / name).exists()]
    commands = re.findall(r"(?:python (?:-m )?benchmarks[\w./]+|kinema evaluate)", part)
    assert commands
    for command in commands:
        if not command.startswith("kinema"):
            path = command.split()[-1]
            module = ROOT / (path if path.endswith(".py") else path.replace(".", "/"))
            assert any(file.is_file() for file in (module, module.with_suffix(".py"), module / "__main__.py"))


def test_hours_of_training_are_the_same_in_readme_card_and_decision() -> None:
    for document in ("README.md", CARD.format("zoetrope"), "docs/decisions/0020-open-sora-pocket.md"):
        assert re.search(r"eleven\s+hours", text_of(document))
    minutes = [85, 65, 80, 63, 120]  # as the notes have them
    notes = text_of("docs/notes/0002-zoetrope.md")
    for said in ("85 minutes", "65 minutes", "80 minutes", "63 minutes", "two hours"):
        assert said in notes
    assert f"has {sum(minutes)} minutes of them, for {2100 + 1350 + 1600 + 1500 + 1998:,}" in text_of(
        CARD.format("zoetrope")
    )
