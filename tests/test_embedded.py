"""Included models and add-ons: opened by name, and replayed from a recipe on another machine."""

from __future__ import annotations

import pytest
import torch

from kinema import Request, load, registry
from kinema.job import build_job
from kinema.provenance import recipe
from kinema.schema import BadRequest
from kinema.training.options import TrainOptions
from kinema.training.run import train

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
    record = recipe(build_job(load("animatediff-pocket", add=PARTS, loras={LORA: 0.5}).system, ASK))
    assert [each["file"] for each in record["stages"][0]["added"]] == [
        "animatediff-pocket-motion",
        "animatediff-pocket-night",
    ]
    assert [each["file"] for each in record["stages"][0]["loras"]] == [LORA]


def test_files_in_the_working_folder_do_not_replace_included_add_ons(tmp_path, monkeypatch):
    """As with embedded models: a run's folder of such a name is no reason to load something else."""
    monkeypatch.chdir(tmp_path)
    for name in (LORA, "animatediff-pocket-motion"):
        (tmp_path / name).mkdir()
        assert registry.add_on_file(name) == registry.weight_file(f"{name}.safetensors")
        assert registry.add_on_file(f"./{name}") == f"./{name}"
        assert registry.recipe_name(registry.weight_file(f"{name}.safetensors")) == name
        assert registry.recipe_name(tmp_path / f"{name}.safetensors") == f"{name}.safetensors"
    assert load("animatediff-pocket", loras={LORA: 1.0}).system.config.motion == "v2"


@pytest.mark.parametrize("stage", ["image", "style", "motion"])
def test_every_training_stage_starts_from_the_embedded_model(stage, tmp_path):
    """Also where single frames leave out the motion module that the name adds."""
    style = {"style": "night"} if stage == "style" else {}
    record = {"model": "animatediff-pocket", "out": str(tmp_path), "stage": stage, "steps": 1, "batch": 2, **style}
    assert train(TrainOptions(sample_every=0, **record)).step == 1


def test_a_part_in_the_wrong_place_is_named_for_what_it_is():
    with pytest.raises(BadRequest, match="animatediff-pocket-pans-left.safetensors is .*; expected a motion module"):
        load("animatediff-pocket", add={"motion": LORA})
    with pytest.raises(BadRequest, match="is not a LoRA"):
        load("animatediff-pocket", loras={"animatediff-pocket-night": 1.0})


def test_a_misspelt_add_on_gets_a_suggestion():
    with pytest.raises(BadRequest, match=r"no file animatediff-pocket-nigth .*did you mean animatediff-pocket-night"):
        load("animatediff-pocket", add={"style": "animatediff-pocket-nigth"})
    with pytest.raises(BadRequest, match=r"no LoRA file animatediff-pocket-pan-left; did you mean .*-pans-left"):
        load("animatediff-pocket", loras={"animatediff-pocket-pan-left": 1.0})
    with pytest.raises(BadRequest, match=r"no LoRA file mine\.safetensors$"):
        load("animatediff-pocket", loras={"mine.safetensors": 1.0})


def test_an_add_on_given_as_the_model_is_refused_with_its_option():
    with pytest.raises(
        BadRequest,
        match="is an add-on, not a model; pass it to animatediff-pocket as --add motion=animatediff-pocket-motion ",
    ):
        load("animatediff-pocket-motion")
    with pytest.raises(BadRequest, match="--lora animatediff-pocket-pans-left "):
        load("animatediff-pocket-pans-left")


def test_an_empty_name_is_refused():
    with pytest.raises(BadRequest, match="name is empty"):
        load("")
    with pytest.raises(BadRequest, match="LoRA is empty"):
        load("animatediff-pocket", loras={"": 1.0})
