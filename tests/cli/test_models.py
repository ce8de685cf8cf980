"""``kinema models``: the catalogue, counted on the meta device."""

from __future__ import annotations

import json

import pytest

from kinema import registry
from kinema.cli.main import main
from kinema.schema import BadRequest, Request


def test_models_lists_every_preset_with_its_size(catalogued, capsys, monkeypatch):
    monkeypatch.setattr("kinema.cli.models.catalogue", lambda: list(catalogued.values()))
    assert main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed == json.loads(json.dumps(list(catalogued.values())))
    assert {f"{name}/{preset}" for name in registry.FAMILIES for preset in registry.family(name).presets} <= {
        row["name"] for row in listed if row["parameters"]
    }
    tiny = next(row for row in listed if row["name"] == "zoetrope/tiny")
    assert tiny["parameters"] > 1000
    assert main(["models"]) == 0
    page = capsys.readouterr().out
    assert all(row["name"] in page for row in listed)


@pytest.mark.parametrize(
    ("model", "part", "parameters", "tensors"),
    [
        ("svd/svd", "unet", 1_524_623_082, 1428),
        ("svd/svd", "vae", 97_742_847, 374),
        ("svd/svd", "image_encoder", 632_076_800, 520),
        ("svd/svd-xt", "unet", 1_524_623_082, 1428),
        ("svd/sv3d-u", "unet", 1_523_967_722, 1428),
        ("svd/sv3d-p", "unet", 1_525_278_442, 1428),
    ],
)
def test_the_modules_of_a_model_have_the_published_counts(catalogued, model, part, parameters, tensors):
    assert catalogued[model]["parts"][part] == {"parameters": parameters, "tensors": tensors}


def test_the_counts_of_the_modules_add_up(catalogued):
    counted = [row for row in catalogued.values() if row["parameters"] is not None]
    assert counted
    for row in counted:
        for what in ("parameters", "tensors"):
            assert sum(part[what] for part in row["parts"].values()) == row[what]


def test_aliases_are_listed_with_their_repository(catalogued):
    assert catalogued["svd-xt"]["kind"] == "alias of stabilityai/stable-video-diffusion-img2vid-xt"


def test_one_model_is_shown_with_its_sizes_and_options(capsys):
    assert main(["models", "opensora/v2-dc-ae", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["sizes"]["768px:2:1"] == "544×1056"
    assert shown["extra"]["image-guidance"] == "guidance scale of given frames; default 3 (0 to 100)"
    assert (shown["longest"], shown["side_multiple"]) == (128, 32)
    assert main(["models", "opensora/tiny"]) == 0
    assert "768px:16:9       576×1024" in capsys.readouterr().out
    assert main(["models", "opensora/v3"]) == 2
    assert main(["models", "zoetrope", "--samplers"]) == 2


@pytest.mark.parametrize("name", sorted(registry.FAMILIES))
def test_every_option_that_is_shown_is_one_that_the_model_accepts(name):
    """A wrong value is refused for its value, or the option for what it needs, never for its name."""
    family = registry.family(name)
    for preset, config in family.presets.items():
        for option in family.sampling.defaults(config).extra:
            request = Request(task="animate", prompt="a", frames=1, height=64, width=64, extra={option: object()})
            with pytest.raises(BadRequest) as refused:
                family.sampling.check(config, request)
            assert " has no option " not in str(refused.value), (preset, option)
            assert "has no option" not in str(refused.value), (preset, option)
