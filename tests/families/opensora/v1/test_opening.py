"""Opening files of Open-Sora 1.0 to 1.3 with their codecs: strict, and one sentence for what does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kinema import registry
from kinema.api import Model, load
from kinema.families.opensora.v1.opening import kind_of
from kinema.schema import BadRequest, Request

Models = Callable[[str], Model]
VERSIONS = ("1.0", "1.1", "1.2", "1.3")
TRANSFORMERS = {
    "1.0": "OpenSora-v1-HQ-16x512x512",
    "1.1": "OpenSora-STDiT-v2-stage3",
    "1.2": "OpenSora-STDiT-v3",
    "1.3": "OpenSora-STDiT-v4",
}
CODECS = {"1.0": "sd-vae-ft-ema", "1.1": "sd-vae-ft-ema", "1.2": "OpenSora-VAE-v1.2", "1.3": "OpenSora-VAE-v1.3"}


@pytest.fixture
def published(models: Models, tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Folders of a tiny transformer and of its codec, as on the hub; the codec's in a folder of this name."""

    def write(version: str, beside: str = "codecs") -> tuple[Path, Path]:
        model, stdit = models(version).system.model, models(version).system.config.stdit
        told = {"num_heads": stdit.heads} | ({"kernel_size": [*stdit.window, -1]} if stdit.window else {})
        places = (tmp_path / "models" / TRANSFORMERS[version], tmp_path / beside / CODECS[version])
        for place, part, settings in zip(places, (model.transformer, model.vae), (told, {}), strict=True):
            place.mkdir(parents=True, exist_ok=True)
            save_file({name: x.contiguous() for name, x in part.state_dict().items()}, place / "model.safetensors")
            (place / "config.json").write_text(json.dumps(settings))
        return places

    return write


@pytest.mark.parametrize("version", VERSIONS)
def test_a_transformer_and_its_codec_open_as_they_are(
    models: Models, published: Callable[..., tuple[Path, Path]], version: str
) -> None:
    transformer, codec = published(version)
    opened, own = load(transformer, add={"vae": codec}).system, models(version).system.config
    config = opened.config
    assert (config.version, config.absent, config.words) == (version, (), ())
    assert (config.stdit.heads, config.stdit.window, config.stdit.width) == (
        own.stdit.heads, own.stdit.window, own.stdit.width,
    )  # fmt: skip
    preset = registry.family("opensora").presets["v1.0-512px" if version == "1.0" else f"v{version}"]
    assert (config.steps, config.guidance, config.height) == (preset.steps, preset.guidance, preset.height)
    expected = {n: x for n, x in models(version).system.model.state_dict().items() if not n.startswith("words.")}
    found = opened.filled().state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], x) for name, x in expected.items())


def test_positions_of_1_0_are_those_that_the_files_name_tells(published: Callable[..., tuple[Path, Path]]) -> None:
    transformer, codec = published("1.0")
    by_name = load(transformer, add={"vae": codec}).system
    assert (by_name.config.stdit.space_scale, by_name.config.height, by_name.notes) == (1.0, 512, ())
    other = transformer.rename(transformer.with_name("mine"))
    assumed = load(other, add={"vae": codec}).system
    assert (assumed.config.stdit.space_scale, assumed.config.height) == (0.5, 256)
    assert "assumed to be those of 256 px" in assumed.notes[0]
    chosen = load(other, add={"vae": codec}, variant="v1.0-64f").system
    assert (chosen.config.stdit.time_scale, chosen.config.frames, chosen.notes) == (2 / 3, 64, ())


def test_a_codec_next_to_the_transformer_is_found(published: Callable[..., tuple[Path, Path]]) -> None:
    transformer, codec = published("1.2", beside="models")
    system = load(transformer).system
    assert system.config.absent == ()
    assert [each.source.path for each in system.weights.added] == [codec.resolve()]


def test_without_a_codec_the_model_says_what_to_add(published: Callable[..., tuple[Path, Path]]) -> None:
    transformer, _ = published("1.2")
    with pytest.raises(BadRequest, match=r"has no VAE; add the VAE of Open-Sora 1\.2 .*hpcai-tech/OpenSora-VAE-v1\.2"):
        load(transformer).run(Request(prompt="a ball"))


def test_a_codec_of_another_version_is_refused_in_one_sentence(published: Callable[..., tuple[Path, Path]]) -> None:
    transformer, _ = published("1.2")
    _, codec = published("1.3")
    with pytest.raises(BadRequest) as refused:
        load(transformer, add={"vae": codec})
    assert "is the VAE of Open-Sora 1.3 (16 channels); this model needs the VAE of Open-Sora 1.2" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_no_codec_and_other_slots_are_refused(published: Callable[..., tuple[Path, Path]]) -> None:
    transformer, _ = published("1.2")
    with pytest.raises(BadRequest, match="is not a VAE of this model"):
        load(transformer, add={"vae": transformer})
    with pytest.raises(BadRequest, match="this model has no slot clip; it has vae and t5"):
        load(transformer, add={"clip": transformer})
    with pytest.raises(BadRequest, match="is not T5-XXL"):
        load(transformer, add={"t5": transformer})


def test_a_left_over_tensor_and_another_version_are_named(published: Callable[..., tuple[Path, Path]]) -> None:
    transformer, _ = published("1.2")
    with pytest.raises(BadRequest, match=r"cannot be v1\.3: it is a transformer of Open-Sora 1\.2"):
        load(transformer, variant="v1.3")
    file = transformer / "model.safetensors"
    from safetensors.torch import load_file

    save_file({**load_file(file), "left.over": torch.zeros(1)}, file)
    with pytest.raises(BadRequest, match=r"left\.over"):
        load(transformer)


def test_aliases_name_a_model_its_codec_and_its_terms() -> None:
    presets = registry.family("opensora").presets
    for version in VERSIONS:
        alias = f"open-sora-{version}"
        assert TRANSFORMERS[version].replace("512x512", "256x256") in registry.ALIASES[alias]
        assert registry.DEFAULT_ADD_ONS[alias]["vae"].endswith(f"/{CODECS[version]}")
        owner, name, *_ = registry.ALIASES[alias].split("/")
        assert "Apache-2.0" in registry.TERMS[f"{owner}/{name}"]
        assert kind_of(presets[f"v{version}"]) == {"1.2": "1.2", "1.3": "1.3"}.get(version, "image")
