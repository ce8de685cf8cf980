"""Sources: a weight file, the folder of a network and a pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kinema.checkpoints import files
from kinema.checkpoints.files import write_tensors
from kinema.checkpoints.source import MAX_JSON, Source, read_json
from kinema.schema import BadRequest

UNET = {"conv.weight": torch.arange(6.0).reshape(2, 3)}
VAE = {"conv.weight": torch.ones(4), "norm.bias": torch.zeros(2)}


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A pipeline of two networks and a scheduler."""
    folder = tmp_path / "mine"
    for part, tensors in (("unet", UNET), ("vae", VAE)):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps({"part": part}))
        write_tensors(folder / part / "model.safetensors", tensors)
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text('{"steps": 3}')
    index = {"_class_name": "SomePipeline", "unet": ["diffusers", "U"], "vae": ["diffusers", "V"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_a_file_has_a_header_and_metadata(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", UNET, {"kinema": "{}"})
    source = Source(tmp_path / "a.safetensors")
    assert source.header == files.header(tmp_path / "a.safetensors")
    assert source.metadata == {"kinema": "{}"}
    assert (source.pipeline, source.index, source.config("unet")) == ("", {}, {})
    assert torch.equal(source.tensors()["conv.weight"], UNET["conv.weight"])
    assert source.hash() == files.weight_hash(tmp_path / "a.safetensors")


def test_the_folder_of_a_network_reads_like_its_file(pipeline: Path) -> None:
    source = Source(pipeline / "unet")
    assert source.header.keys() == UNET.keys()
    assert source.pipeline == ""
    assert source.files() == [pipeline / "unet/model.safetensors"]


def test_tensor_names_of_a_pipeline_start_with_the_component(pipeline: Path) -> None:
    source = Source(pipeline)
    assert source.pipeline == "SomePipeline"
    assert (source.header, source.metadata) == ({}, {})
    assert set(source.headers(["unet", "vae"])) == {"unet.conv.weight", "vae.conv.weight", "vae.norm.bias"}
    assert set(source.headers(["vae"])) == {"vae.conv.weight", "vae.norm.bias"}
    assert torch.equal(source.tensors(["unet"])["unet.conv.weight"], UNET["conv.weight"])
    assert [file.parent.name for file in source.files(["unet", "vae"])] == ["unet", "vae"]
    assert source.config("scheduler", "scheduler_config.json") == {"steps": 3}


def test_the_hash_of_a_pipeline_covers_the_weights_and_configs_of_its_components(pipeline: Path) -> None:
    def current() -> str:
        return Source(pipeline).hash(["unet", "vae"])

    first = current()
    assert first.startswith("sha256-pipeline:")
    (pipeline / "unet/config.json").write_text(json.dumps({"part": "unet"}, indent=4))
    (pipeline / "scheduler/scheduler_config.json").write_text("{}")
    assert current() == first
    write_tensors(pipeline / "vae/model.safetensors", {**VAE, "norm.bias": torch.tensor([0.0, 1e-7])})
    second = current()
    (pipeline / "unet/config.json").write_text('{"part": "other"}')
    assert len({first, second, current()}) == 3


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["text_encoder"], "lacks text_encoder/, which the pipeline SomePipeline needs"),
        (["unet", "scheduler", "a", "b"], "lacks a/, b/ and scheduler/config.json, which"),
    ],
)
def test_missing_components_are_named_together(pipeline: Path, parts: list[str], message: str) -> None:
    Source(pipeline).need(["unet", "vae"])
    with pytest.raises(BadRequest, match=message):
        Source(pipeline).need(parts)


def test_the_name_in_the_hub_cache_is_that_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--someone--video-xt" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "svd_xt.safetensors").touch()
    assert Source(snapshot).name == "video-xt"
    assert Source(snapshot / "svd_xt.safetensors").name == "svd_xt"
    assert Source(tmp_path / "models--someone--video-xt").name == "models--someone--video-xt"
    monkeypatch.chdir(snapshot)
    assert Source(Path()).name == "video-xt"


def test_a_pipeline_without_a_class_is_recognised(pipeline: Path) -> None:
    (pipeline / "model_index.json").write_text('{"unet": ["diffusers", "U"]}')
    assert Source(pipeline).pipeline == "of an unknown class"


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is damaged"), ("[1]", "is not a JSON object"), ("[" * 10**5, "is nested deeper"), ("\xff", "is not UTF-8")],
)
def test_invalid_json_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(BadRequest, match=f"config.json .*{message}"):
        read_json(tmp_path / "config.json")


def test_an_oversized_config_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(MAX_JSON + 1)
    with pytest.raises(BadRequest, match="at most .* are read; expected a config"):
        read_json(tmp_path / "config.json")
