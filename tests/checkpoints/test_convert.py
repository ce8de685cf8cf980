"""Conversion when the target already exists or appears meanwhile."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kinema.checkpoints import convert as converting
from kinema.checkpoints.convert import Conversion, TargetFile, convert
from kinema.events import Note
from kinema.schema import BadRequest


@pytest.mark.parametrize(("name", "inside"), [("b.safetensors", ""), ("b", "unet/weights.safetensors")])
def test_a_target_created_meanwhile_is_kept_and_the_weights_get_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, inside: str
) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / name
    source.write_text("weights")

    def make(_: str) -> torch.Tensor:
        if not target.exists():  # another process writes it meanwhile
            target.mkdir() if inside else target.write_text("foreign")
        return torch.ones(2)

    plan = Conversion((TargetFile(inside, {"w": ((2,), torch.float32)}, make, {}),), {})
    layouts = SimpleNamespace(names=("l",), plan=lambda *_: plan)
    monkeypatch.setattr(converting, "_open", lambda *_: ("f", layouts, None))
    notes: list[str] = []
    done = convert(source, target, "l", on_event=lambda e: notes.append(e.message) if isinstance(e, Note) else None)
    renamed = tmp_path / name.replace("b", "b-2", 1)
    assert done.path == renamed
    assert (renamed / inside).is_file()
    assert notes == [f"{target} was created by another process and was kept; the weights were written to {renamed}"]
    assert not list(target.iterdir()) if inside else target.read_text() == "foreign"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_broken_symlink_counts_as_an_existing_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.safetensors").write_text("weights")
    (tmp_path / "b.safetensors").symlink_to(tmp_path / "missing")
    plan = Conversion((TargetFile("", {}, lambda _: torch.ones(2), {}),), {})
    layouts = SimpleNamespace(names=("l",), plan=lambda *_: plan)
    monkeypatch.setattr(converting, "_open", lambda *_: ("f", layouts, None))
    with pytest.raises(BadRequest, match="already exists"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "l")


def written_files(folder: Path) -> dict[str, bytes]:
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


@pytest.mark.parametrize("other", ["optimizer.pt", ".notes", "unet/weights.fp16.safetensors", "samples/1/a.png"])
def test_a_folder_is_overwritten_only_if_all_its_files_are_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b"
    source.write_text("weights")
    weights = TargetFile("unet/w.safetensors", {"w": ((2,), torch.float32)}, lambda _: torch.ones(2), {})
    plan = Conversion((weights,), {"model_index.json": {}, "adapter_config.json": {}})
    layouts = SimpleNamespace(names=("l",), plan=lambda *_: plan)
    monkeypatch.setattr(converting, "_open", lambda *_: ("f", layouts, None))
    convert(source, target, "l")
    (target / "empty").mkdir()
    (target / "model_index.json").write_text("old")
    convert(source, target, "l", overwrite=True)
    assert (target / "model_index.json").read_text() == "{}\n"
    (target / other).parent.mkdir(parents=True, exist_ok=True)
    (target / other).write_text("months of work")
    (target / "model_index.json").write_text("old")
    before = written_files(target)
    with pytest.raises(BadRequest, match=f"folder of other files, such as {other}, which would be deleted"):
        convert(source, target, "l", overwrite=True)
    assert written_files(target) == before


def test_a_folder_with_a_link_to_another_folder_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b"
    source.write_text("weights")
    (tmp_path / "elsewhere").mkdir()
    target.mkdir()
    (target / "unet").symlink_to(tmp_path / "elsewhere")
    plan = Conversion((TargetFile("unet/w.safetensors", {}, lambda _: torch.ones(2), {}),), {})
    layouts = SimpleNamespace(names=("l",), plan=lambda *_: plan)
    monkeypatch.setattr(converting, "_open", lambda *_: ("f", layouts, None))
    with pytest.raises(BadRequest, match="such as unet, which would be deleted"):
        convert(source, target, "l", overwrite=True)
