"""`kinema convert` of Open-Sora 1.x: pickles, folders and our files to what its code loads, and back byte for byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kinema.api import load
from kinema.checkpoints import files
from kinema.checkpoints.convert import convert
from kinema.events import Event, Note
from kinema.families.opensora.family import FAMILY
from kinema.families.opensora.v1.config import PRESETS
from kinema.families.opensora.v1.model import OpenSora1
from kinema.schema import BadRequest

LATER = ("1.1", "1.2", "1.3")
Models = Callable[[str], Any]


def tensors_of(model: Any, part: str) -> dict[str, torch.Tensor]:
    return {n: x.detach().clone() for n, x in getattr(model, part).state_dict().items()}


def own(path: Path, version: str, **changes: Any) -> OpenSora1:
    """A file as `kinema train` writes it, of a model that reads T5."""
    config = replace(PRESETS[f"tiny-{version}"], words=())
    config = replace(config, stdit=replace(config.stdit, **changes))
    model = OpenSora1(config)
    note = json.dumps({"family": "opensora", "config": FAMILY.to_json(config)})
    files.write_tensors(path, model.state_dict(), {"kinema": note})
    return model


def equal(path: Path, tensors: dict[str, torch.Tensor]) -> bool:
    found = files.read_tensors(path)
    return found.keys() == tensors.keys() and all(torch.equal(found[n], x) for n, x in tensors.items())


def test_the_pickle_of_1_0_becomes_one_safe_file(models: Models, tmp_path: Path) -> None:
    tensors = tensors_of(models("1.0").system.model, "transformer")
    wide = {**tensors, "pos_embed": torch.zeros(1, 6, 48), "pos_embed_temporal": torch.zeros(1, 8, 48)}
    torch.save({"ema": {f"module.{name}": x for name, x in wide.items()}}, tmp_path / "ema.pt")
    with pytest.raises(BadRequest, match="width of 48, which heads of 72"):
        convert(tmp_path / "ema.pt", tmp_path / "a.safetensors", "open-sora")
    model, said = own(tmp_path / "own.safetensors", "1.0", width=72, heads=1), list[Event]()
    wide = tensors_of(model, "transformer") | {"pos_embed": torch.zeros(1, 6, 72)}
    torch.save(wide, tmp_path / "OpenSora.pth")
    convert(tmp_path / "OpenSora.pth", tmp_path / "a.safetensors", "open-sora", on_event=said.append)
    assert equal(tmp_path / "a.safetensors", tensors_of(model, "transformer"))
    assert any("left out 1 table of positions" in event.message for event in said if isinstance(event, Note))


@pytest.mark.parametrize("version", LATER)
def test_our_file_becomes_their_folder_which_opens_with_the_same_config(tmp_path: Path, version: str) -> None:
    model = own(tmp_path / "own.safetensors", version)
    said: list[Event] = []
    convert(tmp_path / "own.safetensors", tmp_path / "theirs", "open-sora", on_event=said.append)
    assert equal(tmp_path / "theirs", tensors_of(model, "transformer"))
    assert [e.message for e in said if isinstance(e, Note)] == [
        "the VAE is a separate file in this layout, and left out"
    ]
    settings = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert settings["model_type"] == ("STDiT2" if version == "1.1" else "STDiT3")
    opened, had = load(tmp_path / "theirs").system.config, load(tmp_path / "own.safetensors").system.config
    assert opened.stdit == had.stdit


@pytest.mark.parametrize("version", LATER)
def test_their_folder_goes_there_and_back_byte_for_byte(models: Models, tmp_path: Path, version: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    tensors = tensors_of(models(version).system.model, "transformer")
    save_file(tensors, source / "model.safetensors", {"step": "7"})
    settings = {"num_heads": 4, "input_sq_size": 256, **({"kernel_size": [2, 2, -1]} if version == "1.3" else {})}
    (source / "config.json").write_text(json.dumps(settings))
    convert(source, tmp_path / "half", "open-sora", dtype="bf16")
    assert all(x.dtype == torch.bfloat16 for x in files.read_tensors(tmp_path / "half").values())
    convert(source, tmp_path / "same", "open-sora")
    assert (tmp_path / "same" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "same" / "config.json").read_text()) == settings


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_codec_alone_is_one_file(models: Models, tmp_path: Path, version: str) -> None:
    tensors = tensors_of(models(version).system.model, "vae")
    torch.save(tensors, tmp_path / "vae.pt")
    convert(tmp_path / "vae.pt", tmp_path / "vae.safetensors", "open-sora")
    assert equal(tmp_path / "vae.safetensors", tensors)


def test_settings_that_no_file_of_theirs_has_are_named(tmp_path: Path) -> None:
    own(tmp_path / "own.safetensors", "1.2", norm_twice=False)
    said: list[Event] = []
    convert(tmp_path / "own.safetensors", tmp_path / "theirs", "open-sora", on_event=said.append)
    assert any("left out: norm_twice False" in event.message for event in said if isinstance(event, Note))


def test_other_layouts_and_models_with_their_own_words_are_refused_in_one_sentence(
    models: Models, tmp_path: Path
) -> None:
    own(tmp_path / "own.safetensors", "1.2")
    with pytest.raises(BadRequest, match=r"is of Open-Sora 1\.x, which has no layout diffusers; expected open-sora"):
        convert(tmp_path / "own.safetensors", tmp_path / "out", "diffusers")
    note = json.dumps({"family": "opensora", "config": FAMILY.to_json(models("1.2").system.config)})
    files.write_tensors(tmp_path / "tiny.safetensors", models("1.2").system.model.state_dict(), {"kinema": note})
    with pytest.raises(BadRequest, match=r"tiny\.safetensors has its own text embeddings"):
        convert(tmp_path / "tiny.safetensors", tmp_path / "out", "open-sora")


def test_blocks_are_read_one_by_one_from_their_folder(models: Models, tmp_path: Path) -> None:
    tensors = tensors_of(models("1.2").system.model, "transformer")
    save_file(tensors, tmp_path / "model.safetensors")
    layouts = FAMILY.checkpoints.layouts
    read = layouts.reader(tmp_path / "model.safetensors", None)
    assert read is not None
    assert all(torch.equal(read(f"transformer.{name}"), x) for name, x in tensors.items())
