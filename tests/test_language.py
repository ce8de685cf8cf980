"""Retired words stay out of source and pages (docs/decisions/0013): one word has one meaning, and it is the field's."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = sorted((ROOT / "src" / "kinema").rglob("*.py"))
RETIRING = ROOT / "docs" / "decisions" / "0013-plain-language.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(set((ROOT / "docs").rglob("*.md")) - {RETIRING})]

NAMES = (
    *("told", "untold", "made", "making", "hollow", "roomy", "misturned", "misposed", "misshapen", "misplaced"),
    *("misread", "mislocated", "unparted", "ours", "theirs", "picture", "pictures"),
)
"""Names that say nothing: what the value is has a word (config, header, result, loss, foreign, native, image)."""
TURNS = {
    r"takes not": "does not support",
    r"knows not": "does not know",
    r"lets? go of": "releases",
    r"goes on": "continues",
    r"so many": "N, or the number of",
    r"is told": "is given",
    r"was not taught": "unknown",
    r"has no units for": "lacks native",
    r"nowhere for": "cannot offload",
    r"what there is of": "the partial",
    r"is of windows": "applies only to windows",
    r"it is of": "it belongs to",
    r"by and by": "later",
    r"as it was made": "as generated",
    r"\btold\b": "given, stated, or the value's own name",
    r"\buntold\b": "",
    r"\bpictures?\b": "image",
    r"\bbeside\b": "next to, alongside",
}
"""Turns of phrase, as regular expressions, and what to write instead."""
FORMATS = {
    "cli/doctor.py": {"told"},  # a key of `kinema doctor --json`
    "cli/progress.py": {"picture"},  # a field of the event `Preview`
    "data/playroom/grammar.py": {"beside"},  # a word of captions
    "data/shards.py": {"made", "picture"},  # keys and tensors of encoded clips
    "evaluation/measuring.py": {"made"},  # a key of results
    "evaluation/results.py": {"made"},
    "events.py": {"picture"},
    "previews.py": {"picture"},
    "server/worker.py": {"picture"},
    "training/latents.py": {"picture"},
    "training/outputs.py": {"picture"},  # names of sample files
}
"""Words that formats on disk or in JSON use, by file."""


def tokens(path: Path) -> Iterator[tokenize.TokenInfo]:
    return tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)


@cache
def texts(path: Path) -> list[tuple[int, str]]:
    """Line and text of comments, docstrings and strings of a module, or of the lines of a page."""
    if path.suffix != ".py":
        return list(enumerate(path.read_text(encoding="utf-8").splitlines(), 1))
    kinds = (tokenize.STRING, tokenize.COMMENT)
    return [(token.start[0], token.string) for token in tokens(path) if token.type in kinds]


def allowed(path: Path) -> set[str]:
    return FORMATS.get(path.as_posix().rpartition("src/kinema/")[2], set())


def test_no_name_is_a_retired_word() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{token.start[0]} {token.string}"
        for path in SOURCE
        for token in tokens(path)
        if token.type == tokenize.NAME and token.string in NAMES and token.string not in allowed(path)
    ]
    assert not found


@pytest.mark.parametrize("turn", TURNS)
def test_no_text_has_a_retired_turn_of_phrase(turn: str) -> None:
    pattern, found = re.compile(turn, re.IGNORECASE), []
    for path in [*SOURCE, *PAGES]:
        for line, text in texts(path):
            words = {match.lower() for match in pattern.findall(text)}
            if words - allowed(path):
                found.append(f"{path.relative_to(ROOT)}:{line} {sorted(words)}: write {TURNS[turn] or 'it anew'}")
    assert not found


def test_a_retired_word_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("What the network is told goes on.")
    assert [line for line, text in texts(page) if re.search(r"is told", text)] == [1]
    module = tmp_path / "module.py"
    module.write_text('told = 1  # made\nx = "a picture"\n')
    assert {t.string for t in tokens(module) if t.type == tokenize.NAME} & set(NAMES) == {"told"}
    assert [text for _, text in texts(module)] == ["# made", '"a picture"']
