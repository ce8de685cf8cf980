from __future__ import annotations

from pathlib import Path

import pytest

from kinema.checkpoints.hub import fetch
from kinema.schema import BadRequest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache of our own with one repository in it, as the library lays it out."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--something"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (snapshot / "model.safetensors").write_bytes(b"x")
    return snapshot


def test_a_cached_repository_is_found_offline(cache: Path) -> None:
    assert fetch("someone/something", offline=True) == cache
    assert fetch("someone/something", offline=True, patterns=["*.safetensors"]) == cache


def test_what_is_not_cached_is_one_sentence_offline(cache: Path) -> None:
    with pytest.raises(BadRequest, match="someone/else is not in the local cache and offline mode is on"):
        fetch("someone/else", offline=True)
    with pytest.raises(BadRequest, match=r"holds none of \*\.bin"):
        fetch("someone/something", offline=True, patterns=["*.bin"])


def test_a_name_that_is_none_is_one_sentence(cache: Path) -> None:
    for name in ("a/b/c", "../etc", "bad name"):
        with pytest.raises(BadRequest, match="expected owner/name"):
            fetch(name, offline=True)
