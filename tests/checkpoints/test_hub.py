from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from kinema.api import load
from kinema.cancel import Cancel
from kinema.checkpoints.hub import fetch, fetch_model
from kinema.schema import BadRequest, Cancelled
from kinema.system import open_system


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary hub cache with one repository."""
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


def test_missing_files_are_refused_offline(cache: Path) -> None:
    with pytest.raises(BadRequest, match="someone/else is not in the local cache and offline mode is on"):
        fetch("someone/else", offline=True)
    with pytest.raises(BadRequest, match=r"has no \*\.bin"):
        fetch("someone/something", offline=True, patterns=["*.bin"])


def test_an_invalid_repository_name_is_refused(cache: Path) -> None:
    for name in ("a/b/c", "../etc", "bad name"):
        with pytest.raises(BadRequest, match="expected owner/name"):
            fetch(name, offline=True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, list[str]], list[str]]:
    """(repositories by name, downloaded files): replaces the library's download function."""
    repositories: dict[str, list[str]] = {}
    fetched: list[str] = []

    def snapshot(
        repo_id: str, allow_patterns: list | None, ignore_patterns: list | None, local_files_only: bool, tqdm_class: Any
    ) -> str:
        folder, bar = tmp_path / repo_id.replace("/", "--"), tqdm_class(disable=True)
        folder.mkdir(exist_ok=True)
        for file in repositories[repo_id]:
            wanted = allow_patterns is None or any(fnmatch(file, pattern) for pattern in allow_patterns)
            if wanted and not any(fnmatch(file, pattern) for pattern in ignore_patterns or []):
                (folder / file).parent.mkdir(exist_ok=True)
                (folder / file).touch()
                fetched.append(file)
                with ThreadPoolExecutor(1) as pool:  # as the library downloads
                    pool.submit(bar.update, 1).result()
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda name: repositories[name])
    return repositories, fetched


SVD = [
    "model_index.json",
    "svd.safetensors",
    "svd_image_decoder.safetensors",
    "output.gif",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "tokenizer/merges.txt",
]


def test_only_the_configs_and_one_variant_of_a_pipeline_are_downloaded(hub) -> None:  # noqa: ANN001
    repositories, fetched = hub
    repositories["a/svd"] = SVD
    fetch_model("a/svd")
    common = {"model_index.json", "unet/config.json", "tokenizer/merges.txt"}
    assert set(fetched) == common | {"unet/diffusion_pytorch_model.safetensors"}
    fetched.clear()
    fetch_model("a/svd", variant="fp16")
    assert set(fetched) == common | {"unet/diffusion_pytorch_model.fp16.safetensors"}


def test_fp16_weights_are_downloaded_if_there_are_no_others(hub) -> None:  # noqa: ANN001
    repositories, fetched = hub
    repositories["a/half"] = [file for file in SVD if file != "unet/diffusion_pytorch_model.safetensors"]
    fetch_model("a/half")
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in fetched


def test_only_the_config_and_one_variant_of_a_network_are_downloaded(hub) -> None:  # noqa: ANN001
    repositories, fetched = hub
    weights = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"]
    repositories["a/net"] = ["config.json", *weights, "diffusion_pytorch_model.bin", "show.gif"]
    fetch_model("a/net")
    assert set(fetched) == {"config.json", weights[0]}
    fetched.clear()
    fetch_model("a/net", variant="fp16")
    assert set(fetched) == {"config.json", weights[1]}
    fetched.clear()
    repositories["a/old"] = ["config.json", "diffusion_pytorch_model.bin"]
    fetch_model("a/old")
    assert set(fetched) == {"config.json", "diffusion_pytorch_model.bin"}


def test_one_of_several_single_files_must_be_named(hub) -> None:  # noqa: ANN001
    repositories, fetched = hub
    repositories["a/sv3d"] = ["sv3d_u.safetensors", "sv3d_p.safetensors", "README.md"]
    assert fetch_model("a/sv3d/sv3d_p.safetensors").name == "sv3d_p.safetensors"
    assert fetched == ["sv3d_p.safetensors"]
    fetched.clear()
    with pytest.raises(BadRequest, match=r"has 2 weight files .*name one, such as a/sv3d/sv3d_p.safetensors"):
        fetch_model("a/sv3d")
    repositories["a/motion"] = ["motion.ckpt", "README.md"]
    assert fetch_model("a/motion").name == "motion.ckpt"
    assert fetched == ["motion.ckpt"]
    repositories["a/none"] = ["README.md"]
    with pytest.raises(BadRequest, match="neither a pipeline nor a weight file"):
        fetch_model("a/none")


def test_offline_the_files_are_listed_from_the_cache(cache: Path) -> None:
    assert fetch_model("someone/something", offline=True) == cache / "model.safetensors"
    (cache / "other.ckpt").touch()
    with pytest.raises(BadRequest, match="name one, such as someone/something/model.safetensors"):
        fetch_model("someone/something", offline=True)


def test_hub_names_may_contain_dots_and_name_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetched(name: str, **_options: object) -> Path:
        asked.append(name)
        raise BadRequest("fetched")

    monkeypatch.setattr("kinema.system.opening.hub.fetch_model", fetched)
    named = [
        "stabilityai/stable-diffusion-xl-base-1.0",
        "SG161222/Realistic_Vision_V5.1_noVAE",
        "a/b/sub/c.safetensors",
    ]
    for name in named:
        with pytest.raises(BadRequest, match="fetched"):
            open_system(name)
    file = "guoyww/animatediff/mm_sd_v15_v2.ckpt"
    with pytest.raises(BadRequest, match=f"fetched .*there is no file {file}, so .* was taken for a hub id"):
        open_system("animatediff/tiny", add={"motion": file})
    assert asked == [*named, file]
    for name in ("runs/model.safetensors", "./a/b", "/a/b/c.ckpt", "../b"):
        with pytest.raises(BadRequest, match=f"there is no file {name}"):
            open_system(name)
        with pytest.raises(BadRequest, match=f"there is no file {name}"):
            open_system("animatediff/tiny", add={"motion": name})
    assert len(asked) == 4


@pytest.mark.parametrize("variant", ["a**", "../../x", "fp16/*", "*"])
def test_a_variant_with_wildcards_is_refused(cache: Path, variant: str) -> None:
    with pytest.raises(BadRequest, match="expected a name such as fp16"):
        fetch_model("someone/something", offline=True, variant=variant)


def test_a_download_ends_with_its_current_part(hub: tuple[dict[str, list[str]], list[str]]) -> None:
    """The second download of a folder's files is cancelled while its second file comes."""
    repositories, fetched = hub
    token = Cancel()

    class Files(list[str]):
        def __iter__(self) -> Iterator[str]:
            for file in SVD:
                if fetched.count(SVD[0]) == 2 and file == "unet/config.json":
                    token.cancel()
                yield file

    repositories["stabilityai/something"] = Files()
    for _ in range(2):  # once it is set, nothing is downloaded
        with pytest.raises(Cancelled):
            load("stabilityai/something", cancel=token)
        assert fetched == ["model_index.json", "model_index.json", "unet/config.json"]
