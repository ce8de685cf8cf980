"""Every published name of Open-Sora 1.x opens offline from the hub's cache, with its codec and as it was published."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kinema import registry
from kinema.api import load
from kinema.cli.main import main
from kinema.families.opensora.v1.config import PRESETS, Config
from kinema.families.opensora.v1.model import OpenSora1
from kinema.schema import BadRequest

ALIASES = {
    "open-sora-1.0": ("1.0", "v1.0"),
    "open-sora-1.0-512px": ("1.0", "v1.0-512px"),
    "open-sora-1.1": ("1.1", "v1.1"),
    "open-sora-1.2": ("1.2", "v1.2"),
    "open-sora-1.3": ("1.3", "v1.3"),
    "open-sora-1.3-360p": ("1.3", "v1.3-360p"),
    "open-sora-1.3-i2v": ("1.3", "v1.3-i2v"),
}
"""Version, and the preset whose sampling the name has."""
FULL = {
    "hpcai-tech/Open-Sora/OpenSora-v1-16x256x256.pth": ("1.0", "v1.0"),
    "hpcai-tech/OpenSora-STDiT-v2-stage2": ("1.1", "v1.1"),
}
"""Published models without an alias."""


def tiny(version: str) -> Config:
    """A pickle of 1.0 does not tell its heads, which have 72 features in all published models."""
    config = replace(PRESETS[f"tiny-{version}"], words=())
    return replace(config, stdit=replace(config.stdit, width=72, heads=1)) if version == "1.0" else config


class Hub:
    """The hub's cache in a folder, filled with tiny models in the files that are published."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models = {version: OpenSora1(tiny(version)) for version in ("1.0", "1.1", "1.2", "1.3")}

    def snapshot(self, repository: str) -> Path:
        place = self.folder / f"models--{repository.replace('/', '--')}"
        snapshot = place / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True, exist_ok=True)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / "main").write_text("0" * 40)
        return snapshot

    def publish(self, target: str, version: str) -> None:
        """The transformer: 1.0's is a pickle of the state dict without tables of positions, the others are folders."""
        owner, name, *file = target.split("/")
        place, state = self.snapshot(f"{owner}/{name}"), self.models[version].transformer.state_dict()
        if file:
            torch.save(dict(state), place / file[0])
            return
        stdit = tiny(version).stdit
        settings: dict[str, Any] = {"num_heads": stdit.heads, "qk_norm": True, "model_max_length": stdit.tokens}
        if stdit.window:
            settings |= {"kernel_size": [*stdit.window, -1], "use_spatial_rope": True}
        (place / "config.json").write_text(json.dumps(settings))
        save_file({n: x.contiguous() for n, x in state.items()}, place / "model.safetensors")

    def publish_codec(self, repository: str, version: str) -> None:
        place, image = self.snapshot(repository), version in ("1.0", "1.1")
        (place / "config.json").write_text("{}")
        state = self.models[version].vae.state_dict()
        name = "diffusion_pytorch_model.safetensors" if image else "model.safetensors"
        save_file({n: x.contiguous() for n, x in state.items()}, place / name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Hub(tmp_path / "hub")


@pytest.mark.parametrize("name", [*ALIASES, *FULL])
def test_a_published_name_opens_offline_with_its_codec(hub: Hub, name: str) -> None:
    version, preset = {**ALIASES, **FULL}[name]
    hub.publish(registry.ALIASES.get(name, name), version)
    adds = registry.DEFAULT_ADD_ONS[name]
    hub.publish_codec(adds["vae"], version)
    system = load(name, offline=True).system
    config, published = system.config, registry.family("opensora").presets[preset]
    assert (config.version, config.absent, system.notes) == (version, (), ())
    assert (config.height, config.width, config.frames) == (published.height, published.width, published.frames)
    assert (config.stdit.space_scale, config.aesthetic) == (published.stdit.space_scale, published.aesthetic)
    expected = hub.models[version].state_dict()
    found = system.filled().state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], x) for key, x in expected.items())


def test_every_alias_of_the_first_line_is_tested() -> None:
    assert {name for name in registry.ALIASES if name.startswith("open-sora-1")} == set(ALIASES)


def test_the_pickle_of_1_0_is_planned_and_code_in_it_is_refused(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.publish("hpcai-tech/Open-Sora/OpenSora-v1-HQ-16x256x256.pth", "1.0")
    hub.publish_codec("stabilityai/sd-vae-ft-ema", "1.0")
    file = next((tmp_path / "hub").rglob("*.pth")).rename(tmp_path / "OpenSora-v1-HQ-16x256x256.pth")
    command = ["plan", "generate", "a ball", "--model", str(file), "--add", "vae=stabilityai/sd-vae-ft-ema", "--json"]
    assert main(command) == 1  # a T5 is missing; everything else is here
    plan = json.loads(capsys.readouterr().out)
    assert "T5-XXL" in str(plan["missing"])
    assert not any("pos_embed" in name for name in torch.load(file, weights_only=True))
    torch.save({"code": Path("x")}, file)
    assert main(command) == 2
    assert "pathlib" in capsys.readouterr().err


def test_a_model_of_1_3_of_any_name_can_be_opened_as_each_published_one(hub: Hub, tmp_path: Path) -> None:
    hub.publish("someone/mine", "1.3")
    hub.publish_codec("hpcai-tech/OpenSora-VAE-v1.3", "1.3")
    add = {"vae": "hpcai-tech/OpenSora-VAE-v1.3"}
    assert load("someone/mine", add=add, offline=True).system.config.height == 720
    assert load("someone/mine", add=add, variant="v1.3-360p", offline=True).system.config.height == 360
    with pytest.raises(BadRequest, match=r"cannot be v1\.2: it is a transformer of Open-Sora 1\.3"):
        load("someone/mine", add=add, variant="v1.2", offline=True)
