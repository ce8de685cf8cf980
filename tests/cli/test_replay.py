"""What a replay takes from a recipe, what it refuses, and what it names as different."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from kinema.cli import replay
from kinema.cli.main import main
from kinema.generate import load
from kinema.media.metadata import read_recipe
from kinema.schema import Clip

PLAIN = {"model": "zoetrope/tiny", "request": {"task": "generate", "prompt": "a ball"}}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def said(capsys):
    """Run a replay of a clip with this recipe: (exit code, what it said)."""

    def run(recipe: dict[str, Any], *words: str) -> tuple[int, str]:
        Clip(torch.zeros(1, 3, 2, 16, 16), recipe=recipe).save("clip.mp4")
        code = main(["replay", "clip.mp4", "-o", "again.mp4", *words])
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def opened(monkeypatch):
    """What the model was opened with."""
    told: dict[str, Any] = {}

    def opening(source, **named):
        told.update(named, source=source)
        return load(source, **{**named, "variant": None, "device": "cpu"})

    monkeypatch.setattr("kinema.generate.load", opening)
    return told


def made(**options: Any) -> dict[str, Any]:
    """The recipe of a clip of the untrained model."""
    clip = load("zoetrope", preset="tiny", **options).generate("a ball", steps=1, seed=1)
    return dict(clip.recipe)


def test_a_clip_of_a_preset_opened_in_python_is_replayed(said):
    code, err = said(made())
    assert code == 0, err
    assert "the same to the bit" in err
    assert "not the same" not in err


def test_variant_overrides_and_device_are_those_of_the_recipe(said, opened):
    recipe = {**made(), "variant": "fp16", "overrides": {"null_share": 0.5}, "device": "cpu"}
    opened.clear()
    said({**recipe, "overrides": {}})
    assert (opened["source"], opened["variant"], opened["device"]) == ("zoetrope/tiny", "fp16", "cpu")


def test_overrides_are_rebuilt_with_the_tuples_that_json_lost(said, opened):
    said({**made(), "overrides": {"nothing": [1, [2, 3]]}})
    assert opened["overrides"] == {"nothing": (1, (2, 3))}


def test_a_clip_made_with_overrides_is_the_same_to_the_bit(said):
    model = load("zoetrope", preset="tiny")
    config = model.system.config
    name = next(f for f in vars(config) if isinstance(getattr(config, f), tuple))
    model = load("zoetrope", preset="tiny", overrides={name: getattr(config, name)})
    recipe = dict(model.generate("a ball", steps=1, seed=1).recipe)
    assert name in recipe["overrides"]
    code, err = said(recipe)
    assert code == 0, err
    assert "not the same" not in err


def test_a_device_that_is_not_here_is_refused_and_may_be_overridden(said):
    recipe = {**made(), "device": "xpu"}
    code, err = said(recipe)
    assert code == 2
    assert "another machine" in err
    assert "'xpu'" in err
    assert "--device" in err
    code, err = said(recipe, "--device", "cpu")
    assert code == 0, err
    assert "device is cpu now and was xpu then" in err


def test_another_precision_is_named(said):
    assert "dtype is bfloat16 now and was float32 then" in said(made(), "--dtype", "bf16")[1]


def test_the_first_gpu_by_number_is_the_gpu():
    system = replace(load("zoetrope/tiny").system, device=torch.device("cuda:0"))
    assert replay.other_settings({"device": "cuda", "dtype": "float32"}, system) == []


def test_a_clip_of_the_callers_own_noise_is_refused(said):
    code, err = said({**PLAIN, "noise": "0" * 64})
    assert code == 2
    assert "noise that its caller gave" in err


@pytest.mark.parametrize("zoom", [0, -1, 65, "2", 2.5, True])
def test_a_zoom_of_the_recipe_is_checked_like_the_option(said, zoom):
    code, err = said({**PLAIN, "zoom": zoom})
    assert code == 2
    assert "zoom" in err


def test_a_zoom_below_one_is_refused_as_an_option_too(said):
    code, err = said(PLAIN, "--zoom", "0")
    assert code == 2
    assert "zoom is 0" in err


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": 3},
        {"device": 1},
        {"threads": "two"},
        {"overrides": [1]},
        {"versions": "new"},
        {"inputs": {"image": "00"}},
        {"inputs": {"nothing": "00"}},
        {"extra_inputs": {"control.mp4": "00"}},
        {"extra_inputs": ["control.mp4"]},
    ],
)
def test_a_damaged_recipe_is_one_sentence(said, wrong):
    code, err = said({**PLAIN, **wrong})
    assert code == 2, err
    assert "damaged" in err


def test_the_clip_that_a_replay_makes_carries_the_recipe_again(said):
    said(made())
    assert read_recipe("again.mp4")["frames_hash"] == read_recipe("clip.mp4")["frames_hash"]


def test_files_in_options_of_the_family_are_told_and_a_changed_or_missing_one_is_said(said):
    mask = Path("mask.png")
    Image.new("L", (16, 16), 255).save(mask)
    tiny = load("animatediff", preset="tiny")
    recipe = dict(tiny.generate("a ball", steps=1, seed=1, frames=2, extra={"effect": {mask: 0.5}}).recipe)
    assert list(recipe["extra_inputs"]) == ["mask.png"]
    code, err = said(recipe)
    assert (code, "the same to the bit" in err, "is not the file" in err) == (0, True, False), err
    Image.new("L", (16, 16), 10).save(mask)
    code, err = said(recipe, "--overwrite")
    assert code == 0, err
    assert "mask.png is not the file that the clip was made from" in err
    mask.unlink()
    code, err = said(recipe, "--overwrite")
    assert code == 2
    assert "the clip was made from mask.png, and that file is not there any more" in err
