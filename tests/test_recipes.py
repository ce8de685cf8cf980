"""Recipes: upgrading old versions, and validating untrusted ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from kinema.api import Model, load
from kinema.events import Event, Note
from kinema.provenance import frames_hash
from kinema.recipes import checked, replayed_stages, requests_of, upgraded
from kinema.schema import BadRequest, Clip, Request

CLIP = Path("clip.mp4")
FIRST = {
    "kinema": "0.1.0",
    "model": "vdm/tiny",
    "family": "vdm",
    "weights": "seed:0",
    "variant": "fp16",
    "overrides": {"depth": 2},
    "added": [{"slot": "motion", "file": "mm.ckpt", "hash": "ab"}],
    "loras": [{"file": "a.safetensors", "weight": 0.5, "hash": "cd"}],
    "request": {"task": "edit", "video": "ball.mp4", "strength": 0.4, "seed": 3},
    "inputs": {"video": "ef"},
    "device": "cpu",
    "dtype": "float32",
    "threads": 2,
    "halves_at_once": True,
    "frames_hash": "01",
    "zoom": 2,
}
"""A recipe of version 1."""


@pytest.fixture(scope="module")
def model() -> Model:
    torch.set_num_threads(1)
    return load("vdm", preset="tiny")


def replayed(model: Model, recipe: dict[str, Any]) -> str:
    data = checked(json.loads(json.dumps(recipe)), CLIP)
    return frames_hash(model.run(replayed_stages(data, requests_of(data, CLIP))).video)


def test_a_recipe_of_the_first_version_becomes_one_stage() -> None:
    data = checked(FIRST, CLIP)
    (stage,) = data["stages"]
    moved = ("model", "family", "weights", "variant", "overrides", "added", "loras", "request")
    assert {name: stage[name] for name in moved} == {name: FIRST[name] for name in moved}
    assert stage["memory"] == {"at_once": True}
    assert {name for name in FIRST if name in data} == {*FIRST} - {*moved, "halves_at_once"}
    assert data["recipe"] == 2
    assert checked(data, CLIP) == data


def test_a_request_stored_as_json_text_is_read() -> None:
    data = checked({**FIRST, "request": json.dumps(FIRST["request"])}, CLIP)
    assert requests_of(data, CLIP) == [Request(**FIRST["request"])]


def test_recipes_with_caller_noise_are_refused() -> None:
    for noise in ("00", {"base": "00"}):
        recipe = {**FIRST, "noise": noise} if isinstance(noise, str) else {**upgraded(FIRST), "noise": noise}
        with pytest.raises(BadRequest, match="noise given by the caller"):
            checked(recipe, CLIP)


def test_travel_of_version_1_becomes_prompt_spans() -> None:
    model = load("animatediff", preset="tiny")
    data = {"seed": 1, "steps": 2, "frames": 4, "prompt": "a red ball"}
    new = model.run(Request(**data, prompt_spans={"2": "a blue box"})).recipe
    old = {
        "model": "animatediff/tiny",
        "request": {**data, "task": "generate", "extra": {"travel": {"2": "a blue box"}}},
    }
    assert replayed(model, old) == new["frames_hash"]
    assert new["frames_hash"] != model.run(Request(**data)).recipe["frames_hash"]


@pytest.mark.parametrize(
    "data",
    [
        {"frames": 20, "overlap": 3},
        {"frames": 12, "window": 4, "overlap": 1},
        {"guidance": 3.0, "guidance_end": 1.0},
        {"frames": 20, "prompt_spans": {"12-19": "a blue box"}},
    ],
)
def test_a_clip_is_replayed_from_its_recipe(model: Model, data: dict[str, Any]) -> None:
    clip = model.generate("a red ball", steps=2, **data)  # the seed is random, and recorded
    assert replayed(model, dict(clip.recipe)) == clip.recipe["frames_hash"]


def test_recorded_blocks_and_releases_are_used(model: Model, tmp_path: Path) -> None:
    model.generate("a blue box", steps=2, seed=1).save(tmp_path / "clip")
    clip = model.edit(tmp_path / "clip", "a red ball", steps=6, seed=1, strength=0.5)
    recipe = deepcopy(dict(clip.recipe))
    (block,) = recipe["stages"][0]["blocks"]
    assert block == {"start": 0, "frames": 8, "way": "native", "releases": [3]}
    recipe["stages"][0]["request"]["video"] = str(tmp_path / "clip")
    assert replayed(model, recipe) == clip.recipe["frames_hash"]
    block["releases"] = [5]
    later = model.edit(tmp_path / "clip", "a red ball", steps=6, seed=1, strength=0.2)
    assert later.recipe["stages"][0]["blocks"][0]["releases"] == [5]
    assert replayed(model, recipe) == later.recipe["frames_hash"]


BLOCK = {"start": 0, "frames": 8, "way": "native"}


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([{**BLOCK, "start": -1}], "does not fit this clip"),
        ([{**BLOCK, "start": 10**6}], "does not fit this clip"),
        ([{**BLOCK, "frames": 10**6}], "does not fit this clip"),
        ([{**BLOCK, "frames": 4}], "do not cover all 8 frames"),
        ([{**BLOCK, "way": "continuation"}], "holds frames in a way, or has a prompt, that this clip does not use"),
        ([{**BLOCK, "releases": [1]}], "has invalid releases"),
        ([{**BLOCK, "prompt": "x"}], "holds frames in a way, or has a prompt, that this clip does not use"),
        ([BLOCK] * 3, "the recipe has 3 blocks; this clip has 1"),
        ([BLOCK] * 9000, "9,000 blocks"),
        ([{"start": 0}], "does not fit this clip"),
        ([{**BLOCK, "start": 1.5}], "its blocks is"),
        ([{**BLOCK, "releases": "all"}], "its blocks is"),
        (7, "its blocks is 7"),
    ],
)
def test_blocks_that_do_not_fit_the_clip_are_refused(model: Model, blocks: Any, message: str) -> None:
    recipe = deepcopy(dict(model.generate("a red ball", steps=1, seed=1).recipe))
    recipe["stages"][0]["blocks"] = blocks
    with pytest.raises(BadRequest, match=message):
        replayed(model, recipe)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": 3}, "has version 3; expected 1 to 2: install a newer kinema"),
        ({"recipe": 0}, "has version 0; expected 1 to 2: the recipe is damaged"),
        ({"recipe": "two"}, "its recipe is"),
        ({"stages": []}, "has 0 stages"),
        ({"stages": [{}] * 4}, "has 4 stages"),
        ({"stages": [7]}, "a stage is 7"),
        ({"stages": [{"model": 7}]}, "its model is 7"),
        ({"stages": [{"model": "vdm/tiny"}]}, "has no model or no request"),
        ({"stages": "all"}, "its stages is"),
        ({"dtype": "int3"}, "expected bfloat16 or float16 or float32"),
        ({"threads": 2**40}, "its threads is"),
    ],
)
def test_a_damaged_recipe_is_refused_in_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message) as refusal:
        checked({**upgraded(FIRST), **changes}, CLIP)
    assert len(str(refusal.value)) < 400


def test_only_the_second_stage_may_name_a_super_resolution_model() -> None:
    data = upgraded(FIRST)
    base = {**data["stages"][0], "request": {"prompt": "x"}}
    large = {**base, "request": {"prompt": "x", "super_resolution": "/etc/passwd"}}
    for stages in ([large], [large, base], [base, base], [large, large]):
        with pytest.raises(BadRequest, match="only the stage after the base stage"):
            requests_of(checked({**data, "stages": stages}, CLIP), CLIP)


def test_loras_in_a_recipes_request_are_refused() -> None:
    data = upgraded({**FIRST, "request": {"prompt": "x", "loras": {"/etc/passwd": 1.0}}})
    with pytest.raises(BadRequest, match="names LoRAs"):
        requests_of(checked(data, CLIP), CLIP)


# --------------------------------------------------------------------------------------- two stages

LARGE = {"seed": 7, "steps": 1, "super_resolution": "large"}


@pytest.fixture(scope="module")
def pair(paired: Callable[..., Model]) -> Model:
    return paired()


@pytest.mark.parametrize(
    "data", [{}, {"frames": 12, "every": 4, "super_resolution_weight": 3.0}, {"frames": 9, "width": 64, "clips": 2}]
)
def test_a_clip_of_two_stages_is_replayed_from_its_recipe(pair: Model, data: dict[str, Any]) -> None:
    clip = pair.generate("a red ball", **LARGE, **data)
    assert replayed(pair, dict(clip.recipe)) == clip.recipe["frames_hash"]


def test_a_replayed_super_resolution_model_may_have_a_frame_multiple_of_four(paired: Callable[..., Model]) -> None:
    model = paired(upper={"side": 32}, families=("vdm", "zoetrope"))
    clip = model.generate("a red ball", **LARGE, frames=18, every=2)
    assert clip.recipe["stages"][1]["frames"] == 20
    assert replayed(model, dict(clip.recipe)) == clip.recipe["frames_hash"]


def test_an_enlarged_image_or_edit_is_replayed_from_its_recipe(
    pair: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    video = torch.rand(1, 3, 12, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    Clip(video, 8.0).save(tmp_path / "ball.gif")
    for clip in (
        pair.animate("ball.gif", "a red ball", frames=12, honour="replacement", **LARGE),
        pair.edit("ball.gif", "a red ball", strength=0.5, **LARGE | {"steps": 2}),
    ):
        assert [bool(stage["blocks"][0].get("releases")) for stage in clip.recipe["stages"]] == [
            clip.recipe["stages"][0]["request"]["task"] == "edit",
            False,
        ]
        assert replayed(pair, dict(clip.recipe)) == clip.recipe["frames_hash"]


def test_recorded_super_resolution_blocks_are_used(pair: Model) -> None:
    clip = pair.generate("a red ball", **LARGE, frames=12, every=4)
    recipe = deepcopy(dict(clip.recipe))
    blocks = recipe["stages"][1]["blocks"]
    assert [(block["start"], block["frames"]) for block in blocks] == [(0, 9), (8, 4)]
    blocks[0]["frames"], blocks[1] = 5, {**blocks[1], "start": 4, "frames": 8}
    data = checked(json.loads(json.dumps(recipe)), CLIP)
    other = pair.run(replayed_stages(data, requests_of(data, CLIP)))
    assert other.recipe["stages"][1]["blocks"] == blocks
    assert other.recipe["frames_hash"] != clip.recipe["frames_hash"]


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        (1, {"height": 64}),
        (1, {"width": 64}),
        (1, {"clips": 2}),
        (1, {"frames": 16}),
        (1, {"frames": 20}),
        (1, {"every": None}),
        (0, {"frames": 4}),
        (0, {"height": 32}),
        (0, {"clips": 2}),
    ],
)
def test_stages_that_do_not_match_are_refused_before_sampling(pair: Model, stage: int, changes: dict[str, Any]) -> None:
    request = {"task": "generate", "prompt": "a red ball", "seed": 7, "steps": 1}
    base, large = ({**request, "frames": f, "height": side, "width": side} for f, side in ((3, 16), (12, 32)))
    large |= {"super_resolution": "large", "every": 4}
    (base, large)[stage].update(changes)
    data = {**upgraded(FIRST), "stages": [{"model": "vdm/tiny", "request": each} for each in (base, large)]}
    data = checked(data, CLIP)
    events: list[Event] = []
    with pytest.raises(BadRequest, match="its super-resolution stage does not match its base stage"):
        pair.run(replayed_stages(data, requests_of(data, CLIP)), on_event=events.append)
    assert not [event for event in events if not isinstance(event, Note)]


def test_weights_are_recorded_per_stage(pair: Model) -> None:
    stages = pair.generate("a red ball", **LARGE).recipe["stages"]
    assert [(stage["stage"], stage["model"], stage["weights"]) for stage in stages] == [
        ("base", "vdm/tiny", "seed:0"),
        ("super-resolution", "large", "seed:1"),
    ]
