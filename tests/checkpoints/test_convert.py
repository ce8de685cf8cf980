"""What becomes of a target whose name is taken while weights are converted."""

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
def test_a_target_taken_meanwhile_is_kept_and_the_weights_are_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, inside: str
) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / name
    source.write_text("weights")

    def make(_: str) -> torch.Tensor:
        if not target.exists():  # another writer, while this one is at work
            target.mkdir() if inside else target.write_text("another's")
        return torch.ones(2)

    plan = Conversion((TargetFile(inside, {"w": ((2,), torch.float32)}, make, {}),), {})
    layouts = SimpleNamespace(names=("l",), plan=lambda *_: plan)
    monkeypatch.setattr(converting, "_open", lambda *_: ("f", layouts, None))
    said: list[str] = []
    done = convert(source, target, "l", on_event=lambda e: said.append(e.message) if isinstance(e, Note) else None)
    beside = tmp_path / name.replace("b", "b-2", 1)
    assert done.path == beside
    assert (beside / inside).is_file()
    assert said == [f"{target} appeared meanwhile and was kept; these weights are {beside}"]
    assert not list(target.iterdir()) if inside else target.read_text() == "another's"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_link_that_leads_nowhere_is_a_target_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.safetensors").write_text("weights")
    (tmp_path / "b.safetensors").symlink_to(tmp_path / "nowhere")
    plan = Conversion((TargetFile("", {}, lambda _: torch.ones(2), {}),), {})
    layouts = SimpleNamespace(names=("l",), plan=lambda *_: plan)
    monkeypatch.setattr(converting, "_open", lambda *_: ("f", layouts, None))
    with pytest.raises(BadRequest, match="exists already"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "l")
