"""``kinema models``: the catalogue, counted on the meta device."""

from __future__ import annotations

import json

import pytest

from kinema.cli.main import main


@pytest.fixture(scope="module")
def listed() -> dict[str, dict]:
    """The catalogue by name; built once, since it builds every network on the meta device."""
    import contextlib
    import io

    page = io.StringIO()
    with contextlib.redirect_stdout(page):
        assert main(["models", "--json"]) == 0
    return {row["name"]: row for row in json.loads(page.getvalue())}


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
def test_the_modules_of_a_model_have_the_published_counts(listed, model, part, parameters, tensors):
    assert listed[model]["parts"][part] == {"parameters": parameters, "tensors": tensors}


def test_the_counts_of_the_modules_add_up(listed):
    counted = [row for row in listed.values() if row["parameters"] is not None]
    assert counted
    for row in counted:
        for what in ("parameters", "tensors"):
            assert sum(part[what] for part in row["parts"].values()) == row[what]


def test_aliases_are_listed_with_their_repository(listed):
    assert listed["svd-xt"]["kind"] == "alias of stabilityai/stable-video-diffusion-img2vid-xt"
