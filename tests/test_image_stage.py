"""Jobs with an image stage: another model generates the first frame from the prompt, then the clip is animated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import kinema
from kinema.api import Model, load
from kinema.canvas import Canvas
from kinema.cli.main import main
from kinema.events import Event, Note, Phase, Step
from kinema.job import plan_job, with_image
from kinema.media.metadata import read_recipe
from kinema.media.read import read_video
from kinema.schema import BadRequest, Cancelled, Clip, Request

OPTIONS: dict[str, Any] = {"steps": 2, "seed": 3, "frames": 5, "height": 24, "width": 40}
PROMPT = "a red ball"


@pytest.fixture(scope="module")
def model() -> Model:
    torch.set_num_threads(1)
    return load("opensora", preset="tiny")


def run(model: Model, painter: str, **options: Any) -> tuple[Any, list[Event]]:
    heard: list[Event] = []
    clip = model.animate(None, PROMPT, image_model=painter, on_event=heard.append, **(OPTIONS | options))
    return clip, heard


@pytest.mark.parametrize("painter", ["zoetrope/tiny", "opensora/tiny-dc-ae", "animatediff/pocket"])
def test_the_first_frame_is_the_image_of_another_model(model: Model, painter: str) -> None:
    clip, heard = run(model, painter)
    image, base = clip.recipe["stages"]
    assert (image["stage"], image["model"], image["request"]["frames"]) == ("image", painter, 1)
    assert (base["stage"], base["model"], base["request"]["image_model"]) == ("base", "opensora/tiny", painter)
    family, preset = painter.split("/")
    told = {name: value for name, value in image["request"].items() if name not in ("task", "prompt")}
    alone = load(family, preset=preset).generate(PROMPT, **told).video
    if alone.shape[-2:] == (24, 40):
        assert torch.equal(clip.video[:, :, :1], alone)
    assert [event.detail for event in heard if isinstance(event, Phase) and event.name == "load"] == [
        painter,
        "opensora/tiny",
    ]
    assert clip.shape.frames == 5


def test_the_image_has_the_pixels_of_its_model_and_the_aspect_of_the_clip(model: Model) -> None:
    """The image model's own size is 32×48, 1,536 pixels: for a square clip of 24×24 it generates 40×40."""
    clip, heard = run(model, "opensora/tiny", height=24, width=24)
    request = clip.recipe["stages"][0]["request"]
    assert (request["height"], request["width"]) == (40, 40)
    assert clip.video.shape[-2:] == (24, 24)
    assert not [event for event in heard if isinstance(event, Note) and "snapped" in event.message]


def test_a_model_that_generates_the_size_gives_its_image_to_the_bit(model: Model) -> None:
    clip, heard = run(model, "opensora/tiny", height=32, width=48)
    told = clip.recipe["stages"][0]["request"]
    assert (told.get("height", 32), told.get("width", 48)) == (32, 48)
    image = load("opensora", preset="tiny").generate(PROMPT, frames=1, height=32, width=48, seed=3).video
    assert torch.equal(clip.video[:, :, :1], image)
    assert not [event for event in heard if isinstance(event, Note) and "snapped" in event.message]


def test_every_clip_of_a_batch_has_its_own_image(model: Model) -> None:
    batch, _ = run(model, "opensora/tiny", clips=3, height=32, width=48)
    for i in range(3):
        single, _ = run(model, "opensora/tiny", seed=3 + i, height=32, width=48)
        assert torch.allclose(batch.video[i : i + 1], single.video, atol=1e-4)
    assert (batch.video[0, :, 0] - batch.video[1, :, 0]).abs().max() > 1e-3


def test_a_loop_and_a_region_use_the_image(model: Model) -> None:
    looped, _ = run(model, "opensora/tiny", loop=True)
    assert torch.equal(looped.video[:, :, 0], looped.video[:, :, -1])
    part, _ = run(model, "opensora/tiny", region=(0.0, 0.0, 0.5, 1.0))
    assert torch.equal(part.video[:, :, 0, :, 20:], part.video[:, :, 3, :, 20:])


def test_the_canvas_is_planned_with_the_same_kind_that_it_has_later(model: Model) -> None:
    request = Request(task="animate", prompt=PROMPT, image_model="opensora/tiny", **OPTIONS)
    _, base = plan_job(model.system, request)
    later = with_image(base, torch.rand(1, 3, 1, 24, 40))
    assert base.canvas.kind == later.canvas.kind == "first"
    assert isinstance(later.canvas, Canvas)
    assert later.canvas.block == base.canvas.block


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_model": "svd/tiny"}, "svd/tiny does not support prompts: choose another --image-model"),
        ({"image_model": "opensora/tiny", "image": "a.png"}, "frame 0 is given twice"),
        ({"image_model": "opensora/tiny", "keyframes": {0: "a.png"}}, "frame 0 is given twice"),
        ({"image_model": "opensora/tiny", "prompt": " "}, "the prompt is empty; animate needs one"),
        ({"image_model": "opensora/tiny", "start": "1f"}, "--start applies to a clip given as the image"),
        ({"image_model": "nowhere.safetensors"}, "nowhere.safetensors"),
    ],
)
def test_what_cannot_be_is_refused_before_weights_are_read(options: dict[str, Any], said: str) -> None:
    model = load("opensora", preset="tiny")
    with pytest.raises(BadRequest, match=said):
        model.run(Request(task="animate", **({"prompt": PROMPT} | OPTIONS | options)))
    assert model.system.runtime.model is None
    with pytest.raises(BadRequest, match="generate does not support --image-model"):
        model.run(Request(prompt=PROMPT, image_model="opensora/tiny"))


def test_a_cancelled_image_stage_ends_the_job(model: Model) -> None:
    token = kinema.Cancel()
    loads: list[str] = []

    def stop(event: Event) -> None:
        loads.extend([event.detail] if isinstance(event, Phase) and event.name == "load" else [])
        if isinstance(event, Step):
            token.cancel()

    with pytest.raises(Cancelled, match="cancelled at step 1"):
        model.animate(None, PROMPT, image_model="opensora/tiny", on_event=stop, cancel=token, **OPTIONS)
    assert loads == ["opensora/tiny"]


# ------------------------------------------------------------------------------- the command line

MODELS = ("--image-model", "zoetrope/tiny", "--model", "opensora/tiny")
WORDS = ("animate", PROMPT, *MODELS, "--frames", "5", "--steps", "2")
SIZE = ("--height", "24", "--width", "40", "--seed", "3", "--quiet")


def test_a_replay_of_both_stages_is_equal_to_the_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, *SIZE, "-o", str(tmp_path / "clip.mp4")]) == 0
    recipe = read_recipe(tmp_path / "clip.mp4")
    assert [stage["stage"] for stage in recipe["stages"]] == ["image", "base"]
    assert all(stage["weights"] for stage in recipe["stages"])
    assert main(["replay", str(tmp_path / "clip.mp4"), "-o", str(tmp_path / "again.mp4")]) == 0
    assert "are identical to those of clip.mp4, bit for bit" in capsys.readouterr().err
    assert read_video(tmp_path / "again.mp4").video.shape == (1, 3, 5, 24, 40)


def test_a_replay_with_another_image_model_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, *SIZE, "-o", str(tmp_path / "clip.mp4")]) == 0
    command = ["replay", str(tmp_path / "clip.mp4"), "--image-model", "zoetrope"]
    assert main([*command, "-o", str(tmp_path / "again.mp4")]) == 0
    said = capsys.readouterr().err
    assert "the weights of the image model are not those of the clip" in said
    assert "are not identical to" in said
    assert (
        main(["generate", PROMPT, "--model", "opensora/tiny", "--steps", "1", *SIZE, "-o", str(tmp_path / "a.mp4")])
        == 0
    )
    assert main(["replay", str(tmp_path / "a.mp4"), "--image-model", "zoetrope", "-o", str(tmp_path / "b.mp4")]) == 2
    assert "has no image stage; omit --image-model" in capsys.readouterr().err


def test_super_resolution_follows_the_image_and_the_clip(
    paired: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = paired()
    clip = small.animate(None, PROMPT, image_model="zoetrope/tiny", super_resolution="large", steps=1, seed=1)
    assert [stage["stage"] for stage in clip.recipe["stages"]] == ["image", "base", "super-resolution"]
    assert clip.video[:, :, 0].std() > 0


def test_a_plan_counts_the_image_stage_once(capsys: pytest.CaptureFixture[str]) -> None:
    command = [word for word in (*WORDS, *SIZE) if word != "--quiet"]
    assert main(["plan", *command, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["model"] == "zoetrope/tiny then opensora/tiny"
    assert plan["steps"] == 2
    assert [stage["stage"] for stage in plan["stages"]] == ["image", "base"]
    assert plan["fits"] is True


@pytest.mark.parametrize(
    "damage",
    [
        lambda stages: stages.pop(0),
        lambda stages: stages.append(dict(stages[1])),
        lambda stages: stages[0].update(stage="base"),
        lambda stages: stages[0]["request"].update(frames=5),
        lambda stages: stages[0]["request"].update(image_model="zoetrope"),
        lambda stages: stages.reverse(),
    ],
)
def test_a_damaged_recipe_is_refused(damage: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load("opensora", preset="tiny")
    clip = model.animate(None, PROMPT, image_model="zoetrope/tiny", **OPTIONS)
    recipe = json.loads(json.dumps(clip.recipe))
    damage(recipe["stages"])
    Clip(clip.video, clip.fps, recipe).save(tmp_path / "clip.mp4")
    assert main(["replay", str(tmp_path / "clip.mp4"), "-o", str(tmp_path / "again.mp4"), "--quiet"]) == 2
    assert "the recipe" in capsys.readouterr().err
