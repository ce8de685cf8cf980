"""What ships trained, with its parts: opened by name, and made again from a clip's recipe on another machine."""

from __future__ import annotations

import pytest
import torch

from kinema import Request, load, registry
from kinema.generate import recipe
from kinema.schema import BadRequest

ASK = Request(prompt="a red ball rolls right", steps=1, seed=0)
PARTS = {"style": "animatediff-pocket-night"}
LORA = "animatediff-pocket-pans-left"


def test_a_model_comes_with_what_its_name_adds_and_parts_are_added_by_name():
    plain, styled = load("animatediff-pocket"), load("animatediff-pocket", add=PARTS, loras={LORA: 0.5})
    assert plain.system.config.motion == "v2"
    clips = [model.run(ASK).video for model in (plain, styled)]
    assert clips[0].shape == clips[1].shape == (1, 3, 8, 64, 64)
    assert not torch.equal(*clips)


def test_recipes_tell_parts_by_name_wherever_the_package_is():
    told = recipe(load("animatediff-pocket", add=PARTS, loras={LORA: 0.5}).system, ASK)
    assert [each["file"] for each in told["added"]] == ["animatediff-pocket-motion", "animatediff-pocket-night"]
    assert [each["file"] for each in told["loras"]] == [LORA]


def test_a_file_of_the_name_of_a_part_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert registry.part(LORA) == registry.weights(f"{LORA}.safetensors")
    (tmp_path / LORA).write_bytes(b"")
    assert registry.part(LORA) == LORA
    assert registry.called(tmp_path / f"{LORA}.safetensors") == str(tmp_path / f"{LORA}.safetensors")


def test_a_part_in_the_wrong_place_is_named_for_what_it_is():
    with pytest.raises(BadRequest, match="animatediff-pocket-pans-left.safetensors is no motion module"):
        load("animatediff-pocket", add={"motion": LORA})
    with pytest.raises(BadRequest, match="is no LoRA"):
        load("animatediff-pocket", loras={"animatediff-pocket-night": 1.0})
