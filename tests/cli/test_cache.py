"""``kinema cache``: stored text embeddings, shown and cleared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kinema.cli.main import main
from kinema.conditioning import remembered


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KINEMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KINEMA_CACHE_BYTES", raising=False)
    return tmp_path / "cache" / "text"


def shown(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, object]:
    assert main(["cache", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_an_empty_cache_has_nothing_and_no_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys) == {"folder": str(folder), "embeddings": 0, "bytes": 0, "limit": remembered.MOST}
    assert not folder.exists()


def test_what_is_stored_is_counted_and_cleared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        remembered.put(remembered.key({"prompt": name}), {"out": torch.zeros(4, 8)})
    (folder / "note.txt").write_text("a file of somebody else")
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    told = shown(capsys)
    assert (told["embeddings"], told["bytes"]) == (2, size)
    told = shown(capsys, "--clear")
    assert (told["embeddings"], told["bytes"], told["deleted"], told["freed"]) == (0, 0, 2, size)
    assert [file.name for file in folder.iterdir()] == ["note.txt"]


def test_as_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remembered.put(remembered.key({"prompt": "one"}), {"out": torch.zeros(4, 8)})
    assert main(["cache"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["folder", "embeddings", "bytes", "limit"]
    assert lines[3].split()[1] == "2,147,483,648"


def test_a_limit_that_is_no_number_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KINEMA_CACHE_BYTES", "much")
    assert main(["cache"]) == 2
    assert "KINEMA_CACHE_BYTES is 'much'; expected a number of bytes" in capsys.readouterr().err
