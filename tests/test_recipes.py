"""Recipes of both versions: what older ones become, and what a stranger may not write into one."""

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
from kinema.recipes import checked, recorded, requests_of, upgraded
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
"""A recipe as the first version wrote it."""


@pytest.fixture(scope="module")
def model() -> Model:
    torch.set_num_threads(1)
    return load("vdm", preset="tiny")


def replayed(model: Model, recipe: dict[str, Any]) -> str:
    told = checked(json.loads(json.dumps(recipe)), CLIP)
    return frames_hash(model.run(recorded(told, requests_of(told, CLIP))).video)


def test_a_recipe_of_the_first_version_becomes_one_stage() -> None:
    told = checked(FIRST, CLIP)
    (stage,) = told["stages"]
    moved = ("model", "family", "weights", "variant", "overrides", "added", "loras", "request")
    assert {name: stage[name] for name in moved} == {name: FIRST[name] for name in moved}
    assert stage["memory"] == {"at_once": True}
    assert {name for name in FIRST if name in told} == {*FIRST} - {*moved, "halves_at_once"}
    assert told["recipe"] == 2
    assert checked(told, CLIP) == told


def test_a_request_that_was_kept_as_text_is_read() -> None:
    told = checked({**FIRST, "request": json.dumps(FIRST["request"])}, CLIP)
    assert requests_of(told, CLIP) == [Request(**FIRST["request"])]


def test_noise_of_the_callers_own_was_and_is_refused() -> None:
    for noise in ("00", {"base": "00"}):
        recipe = {**FIRST, "noise": noise} if isinstance(noise, str) else {**upgraded(FIRST), "noise": noise}
        with pytest.raises(BadRequest, match="noise that its caller gave"):
            checked(recipe, CLIP)


def test_travel_of_the_first_version_is_prompt_spans_now() -> None:
    model = load("animatediff", preset="tiny")
    told = {"seed": 1, "steps": 2, "frames": 4, "prompt": "a red ball"}
    new = model.run(Request(**told, prompt_spans={"2": "a blue box"})).recipe
    old = {
        "model": "animatediff/tiny",
        "request": {**told, "task": "generate", "extra": {"travel": {"2": "a blue box"}}},
    }
    assert replayed(model, old) == new["frames_hash"]
    assert new["frames_hash"] != model.run(Request(**told)).recipe["frames_hash"]


@pytest.mark.parametrize(
    "told",
    [
        {"frames": 20, "overlap": 3},
        {"frames": 12, "window": 4, "overlap": 1},
        {"guidance": 3.0, "guidance_end": 1.0},
        {"frames": 20, "prompt_spans": {"12-19": "a blue box"}},
    ],
)
def test_a_clip_is_made_again_from_its_recipe_alone(model: Model, told: dict[str, Any]) -> None:
    clip = model.generate("a red ball", steps=2, **told)  # the seed is drawn, and recorded
    assert replayed(model, dict(clip.recipe)) == clip.recipe["frames_hash"]


def test_blocks_and_releases_are_taken_as_they_are_recorded(model: Model, tmp_path: Path) -> None:
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
    ("blocks", "said"),
    [
        ([{**BLOCK, "start": -1}], "does not fit this clip"),
        ([{**BLOCK, "start": 10**6}], "does not fit this clip"),
        ([{**BLOCK, "frames": 10**6}], "does not fit this clip"),
        ([{**BLOCK, "frames": 4}], "do not cover all 8 frames"),
        ([{**BLOCK, "way": "continuation"}], "a way or prompt that this clip does not use"),
        ([{**BLOCK, "releases": [1]}], "has invalid releases"),
        ([{**BLOCK, "prompt": "x"}], "a way or prompt that this clip does not use"),
        ([BLOCK] * 3, "the recipe has 3 blocks; this clip has 1"),
        ([BLOCK] * 9000, "9,000 blocks"),
        ([{"start": 0}], "does not fit this clip"),
        ([{**BLOCK, "start": 1.5}], "its blocks is"),
        ([{**BLOCK, "releases": "all"}], "its blocks is"),
        (7, "its blocks is 7"),
    ],
)
def test_blocks_that_do_not_make_the_clip_are_refused(model: Model, blocks: Any, said: str) -> None:
    recipe = deepcopy(dict(model.generate("a red ball", steps=1, seed=1).recipe))
    recipe["stages"][0]["blocks"] = blocks
    with pytest.raises(BadRequest, match=said):
        replayed(model, recipe)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipe": 3}, "has version 3; expected 1 to 2: install a newer kinema"),
        ({"recipe": 0}, "has version 0; expected 1 to 2: the recipe is damaged"),
        ({"recipe": "two"}, "its recipe is"),
        ({"stages": []}, "has 0 stages"),
        ({"stages": [{}] * 3}, "has 3 stages"),
        ({"stages": [7]}, "a stage is 7"),
        ({"stages": [{"model": 7}]}, "its model is 7"),
        ({"stages": [{"model": "vdm/tiny"}]}, "names no model or no request"),
        ({"stages": "all"}, "its stages is"),
        ({"dtype": "int3"}, "expected bfloat16 or float16 or float32"),
        ({"threads": 2**40}, "its threads is"),
    ],
)
def test_a_damaged_recipe_is_refused_in_a_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest, match=said) as refusal:
        checked({**upgraded(FIRST), **changes}, CLIP)
    assert len(str(refusal.value)) < 400


def test_only_a_second_stage_names_a_model_that_enlarges() -> None:
    told = upgraded(FIRST)
    base = {**told["stages"][0], "request": {"prompt": "x"}}
    large = {**base, "request": {"prompt": "x", "super_resolution": "/etc/passwd"}}
    for stages in ([large], [large, base], [base, base], [large, large]):
        with pytest.raises(BadRequest, match="only the second of two stages"):
            requests_of(checked({**told, "stages": stages}, CLIP), CLIP)


def test_loras_stand_in_the_recipe_and_never_in_its_request() -> None:
    told = upgraded({**FIRST, "request": {"prompt": "x", "loras": {"/etc/passwd": 1.0}}})
    with pytest.raises(BadRequest, match="names LoRAs"):
        requests_of(checked(told, CLIP), CLIP)


# --------------------------------------------------------------------------------------- two stages

LARGE = {"seed": 7, "steps": 1, "super_resolution": "large"}


@pytest.fixture(scope="module")
def pair(paired: Callable[..., Model]) -> Model:
    return paired()


@pytest.mark.parametrize(
    "told", [{}, {"frames": 12, "every": 4, "super_resolution_weight": 3.0}, {"frames": 9, "width": 64, "clips": 2}]
)
def test_a_clip_of_two_stages_is_made_again_from_its_recipe_alone(pair: Model, told: dict[str, Any]) -> None:
    clip = pair.generate("a red ball", **LARGE, **told)
    assert replayed(pair, dict(clip.recipe)) == clip.recipe["frames_hash"]


def test_the_second_model_of_a_recipe_may_make_frames_by_fours(paired: Callable[..., Model]) -> None:
    model = paired(upper={"side": 32}, families=("vdm", "zoetrope"))
    clip = model.generate("a red ball", **LARGE, frames=18, every=2)
    assert clip.recipe["stages"][1]["frames"] == 20
    assert replayed(model, dict(clip.recipe)) == clip.recipe["frames_hash"]


def test_an_enlarged_picture_or_edit_is_made_again_from_its_recipe(
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


def test_blocks_of_the_second_stage_are_taken_as_they_are_recorded(pair: Model) -> None:
    clip = pair.generate("a red ball", **LARGE, frames=12, every=4)
    recipe = deepcopy(dict(clip.recipe))
    blocks = recipe["stages"][1]["blocks"]
    assert [(block["start"], block["frames"]) for block in blocks] == [(0, 9), (8, 4)]
    blocks[0]["frames"], blocks[1] = 5, {**blocks[1], "start": 4, "frames": 8}
    told = checked(json.loads(json.dumps(recipe)), CLIP)
    other = pair.run(recorded(told, requests_of(told, CLIP)))
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
def test_stages_that_do_not_follow_from_each_other_are_refused_before_anything_is_made(
    pair: Model, stage: int, changes: dict[str, Any]
) -> None:
    request = {"task": "generate", "prompt": "a red ball", "seed": 7, "steps": 1}
    base, large = ({**request, "frames": f, "height": side, "width": side} for f, side in ((3, 16), (12, 32)))
    large |= {"super_resolution": "large", "every": 4}
    (base, large)[stage].update(changes)
    told = {**upgraded(FIRST), "stages": [{"model": "vdm/tiny", "request": each} for each in (base, large)]}
    told = checked(told, CLIP)
    events: list[Event] = []
    with pytest.raises(BadRequest, match="its super-resolution stage does not match its base stage"):
        pair.run(recorded(told, requests_of(told, CLIP)), on_event=events.append)
    assert not [event for event in events if not isinstance(event, Note)]


def test_weights_are_recorded_each_at_its_own_stage(pair: Model) -> None:
    stages = pair.generate("a red ball", **LARGE).recipe["stages"]
    assert [(stage["stage"], stage["model"], stage["weights"]) for stage in stages] == [
        ("base", "vdm/tiny", "seed:0"),
        ("super-resolution", "large", "seed:1"),
    ]
