"""The recorded readings of AUTOMATIC1111 and ComfyUI (`tools/record_prompts.py`), and their vocabulary."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kinema.conditioning.clip_text import ClipTokenizer
from kinema.conditioning.prompts.rows import Words


@pytest.fixture(scope="session")
def recorded() -> Mapping[str, Any]:
    return json.loads((Path(__file__).parent / "recorded" / "prompts.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def tokenizer(recorded: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory) -> ClipTokenizer:
    """A small vocabulary of CLIP's kind: all letters, "red", "ball", "cat", "dog" and a few more words."""
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.json").write_text(json.dumps(recorded["vocabulary"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *recorded["merges"]]))
    return ClipTokenizer(folder)


@pytest.fixture(scope="session")
def words(tokenizer: ClipTokenizer) -> Callable[..., Words]:
    """``words(size=75, **embeddings)``: embeddings by name, with their number of vectors."""

    def make(size: int = 75, **embeddings: int) -> Words:
        return Words(tokenizer, size, embeddings)

    return make
