"""Replays: what a recipe sets, what is refused, and which differences are reported."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from kinema import provenance as recipes
from kinema import registry
from kinema.api import load
from kinema.cli import replay
from kinema.cli.main import main
from kinema.cli.requirements import requirements_of
from kinema.media.metadata import read_recipe
from kinema.provenance import file_hash
from kinema.recipes import upgraded
from kinema.schema import BadRequest, Clip, Request

PLAIN = {"model": "zoetrope/tiny", "request": {"task": "generate", "prompt": "a ball"}}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def replayed(capsys):
    """Replay a clip with this recipe: (exit code, stderr)."""

    def run(recipe: dict[str, Any], *words: str) -> tuple[int, str]:
        Clip(torch.zeros(1, 3, 2, 16, 16), recipe=recipe).save("clip.mp4")
        code = main(["replay", "clip.mp4", "-o", "again.mp4", *words])
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def opened(monkeypatch):
    """The arguments the model was loaded with."""
    arguments: dict[str, Any] = {}

    def recording(source, **kwargs):
        arguments.update(kwargs, source=source)
        return load(source, **{**kwargs, "variant": None, "device": "cpu"})

    monkeypatch.setattr("kinema.api.load", recording)
    return arguments


def recipe_of_tiny(**options: Any) -> dict[str, Any]:
    """The recipe of a clip that the untrained model generated."""
    clip = load("zoetrope", preset="tiny", **options).generate("a ball", steps=1, seed=1)
    return dict(clip.recipe)


def test_a_clip_of_a_preset_opened_in_python_is_replayed(replayed):
    code, err = replayed(recipe_of_tiny())
    assert code == 0, err
    assert "are identical to" in err
    assert "are not identical" not in err


def test_variant_and_device_come_from_the_recipe(replayed, opened):
    recipe = recipe_of_tiny()
    opened.clear()
    replayed({**recipe, "stages": [{**recipe["stages"][0], "variant": "fp16"}]})
    assert (opened["source"], opened["variant"], opened["device"]) == ("zoetrope/tiny", "fp16", "cpu")


def test_overrides_get_back_the_tuples_that_json_lost(replayed, opened):
    recipe = recipe_of_tiny()
    replayed({**recipe, "stages": [{**recipe["stages"][0], "overrides": {"nothing": [1, [2, 3]]}}]})
    assert opened["overrides"] == {"nothing": (1, (2, 3))}


@pytest.mark.parametrize("wrong", [{"depth": "deep"}, {"depth": 2.5}, {"words": [1]}, {"nothing": 1}, {"depth": 10**9}])
def test_overrides_of_a_wrong_type_or_size_are_refused(replayed, wrong):
    code, err = replayed({**PLAIN, "overrides": wrong})
    assert code == 2, err
    assert "overrides" in err


def test_a_clip_with_overrides_is_replayed_bit_for_bit(replayed):
    model = load("zoetrope", preset="tiny")
    config = model.system.config
    name = next(f for f in vars(config) if isinstance(getattr(config, f), tuple))
    model = load("zoetrope", preset="tiny", overrides={name: getattr(config, name)})
    recipe = dict(model.generate("a ball", steps=1, seed=1).recipe)
    assert name in recipe["stages"][0]["overrides"]
    code, err = replayed(recipe)
    assert code == 0, err
    assert "are not identical" not in err


def test_a_missing_device_is_refused_unless_overridden(replayed):
    recipe = {**recipe_of_tiny(), "device": "xpu"}
    code, err = replayed(recipe)
    assert code == 2
    assert "another machine" in err
    assert "'xpu'" in err
    assert "--device" in err
    code, err = replayed(recipe, "--device", "cpu")
    assert code == 0, err
    assert "device is cpu now and xpu in the recipe" in err


def test_another_precision_is_reported(replayed):
    assert "dtype is bfloat16 now and float32 in the recipe" in replayed(recipe_of_tiny(), "--dtype", "bf16")[1]


def test_cuda_and_cuda_0_are_the_same_device():
    system = replace(load("zoetrope/tiny").system, device=torch.device("cuda:0"))
    assert replay.other_settings({"device": "cuda", "dtype": "float32"}, system) == []


def test_a_clip_from_custom_noise_is_refused(replayed):
    code, err = replayed({**PLAIN, "noise": "0" * 64})
    assert code == 2
    assert "noise given by the caller" in err


@pytest.mark.parametrize("zoom", [0, -1, 65, "2", 2.5, True])
def test_the_zoom_of_a_recipe_is_checked_like_the_option(replayed, zoom):
    code, err = replayed({**PLAIN, "zoom": zoom})
    assert code == 2
    assert "zoom" in err


def test_a_zoom_below_one_is_refused(replayed):
    code, err = replayed(PLAIN, "--zoom", "0")
    assert code == 2
    assert "zoom is 0" in err


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": 3},
        {"device": 1},
        {"threads": "two"},
        {"threads": 10**12},
        {"dtype": "float8"},
        {"kinema": 3},
        {"versions": {"torch": [1]}},
        {"added": [{"slot": "motion"}]},
        {"added": ["motion"]},
        {"request": {"task": "generate", "prompt": 3}},
        {"request": {"task": "generate", "prompt": "a", "loop": "yes"}},
        {"request": '{"task": "generate", "prompt": ["a"]}'},
        {"request": {"task": "animate", "image": ["a.png"]}},
        {"request": [1]},
        {"overrides": [1]},
        {"versions": "new"},
        {"inputs": {"image": "00"}},
        {"inputs": {"nothing": "00"}},
        {"extra_inputs": {"control.mp4": "00"}},
        {"extra_inputs": ["control.mp4"]},
    ],
)
def test_a_damaged_recipe_is_refused_in_one_line(replayed, wrong):
    code, err = replayed({**PLAIN, **wrong})
    assert code == 2, err
    assert "damaged" in err


JSON: list[Any] = [None, True, 3, 2.5, "word", [], [3], {}, {"a": 3}]
WHOLE = {
    **PLAIN,
    "family": "zoetrope",
    "request": {"task": "generate", "prompt": "a ball", "extra": {"a": 1}, "sampler_options": {"gamma": 0.3}},
    "weights": "seed:0",
    "variant": "tiny",
    "overrides": {"null_share": 0.5},
    "added": [{"slot": "motion", "file": "a.ckpt", "hash": "00"}],
    "loras": [{"file": "a.safetensors", "weight": 1, "hash": "00"}],
    "inputs": {"image": "00"},
    "extra_inputs": {"a.png": "00"},
    "paths": {"image": "/a.png"},
    "kinema": "1",
    "versions": {"torch": "2"},
    "device": "cpu",
    "dtype": "float32",
    "threads": 1,
    "halves_at_once": False,
    "frames_hash": "00",
    "zoom": 1,
    "noise": None,
}
"""A recipe with every key; its LoRA, inputs and add-on do not exist."""


def changed(value: Any) -> Iterator[Any]:
    """The value with each of its parts in turn replaced by each type of JSON."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        for other in (*JSON, *changed(part)):
            again = copy(value)
            again[name] = other
            yield again


def test_a_value_of_any_type_in_a_recipe_is_a_bad_request(monkeypatch):
    current: list[Any] = []
    monkeypatch.setattr("kinema.media.metadata.read_recipe", lambda _path: current[0])
    monkeypatch.setattr("kinema.api.Model.run", lambda *_, **__: pytest.fail("it was run"))
    count = 0
    for recipe in changed(WHOLE):
        current[:] = [recipe]
        with pytest.raises(BadRequest) as error:
            replay.replay(["clip.mp4", "-o", "again.mp4", "--quiet"])
        assert len(str(error.value)) < 380, recipe
        count += 1
    assert count > 300


@pytest.mark.parametrize("name", ["device", "dtype", "kinema", "threads", "weights", "zoom", "variant", "versions"])
def test_a_null_value_is_damage(replayed, name):
    code, err = replayed({**PLAIN, name: None})
    assert code == 2, err
    assert f"the recipe in clip.mp4 is damaged: its {name} is null; expected" in err


def test_a_replayed_clip_carries_the_recipe(replayed):
    replayed(recipe_of_tiny())
    assert read_recipe("again.mp4")["frames_hash"] == read_recipe("clip.mp4")["frames_hash"]


def test_files_of_family_options_are_required_by_name_and_compared(replayed):
    mask = Path("here/mask.png")
    mask.parent.mkdir()
    Image.new("L", (16, 16), 255).save(mask)
    tiny = load("animatediff", preset="tiny")
    recipe = dict(tiny.generate("a ball", steps=1, seed=1, frames=2, extra={"effect": {mask: 0.5}}).recipe)
    assert (list(recipe["extra_inputs"]), recipe["stages"][0]["request"]["extra"]) == (
        ["mask.png"],
        {"effect": {"mask.png": 0.5}},
    )
    code, err = replayed(recipe)
    assert (code, err) == (
        2,
        "kinema: replaying clip.mp4 needs mask.png; give it with --input mask.png=PATH\n",
    )
    for word in ("mask.png=here/mask.png", "here/mask.png"):
        code, err = replayed(recipe, "--input", word, "--overwrite")
        assert (code, "are identical to" in err, "is not the file" in err) == (0, True, False), err
    Image.new("L", (16, 16), 10).save("other.png")
    code, err = replayed(recipe, "--overwrite", "--input", "mask.png=other.png")
    assert code == 0, err
    assert "other.png is not the file that the clip was generated from" in err


def test_two_files_with_one_name_get_distinct_names():
    files = [Path(folder) / "x.png" for folder in ("a", "b")]
    for level, file in enumerate(files):
        file.parent.mkdir()
        Image.new("L", (16, 16), 255 * level).save(file)
    extra = {"effect": {str(file): 0.5 for file in files}}
    recipe = load("animatediff", preset="tiny").generate("a ball", steps=1, seed=1, frames=2, extra=extra).recipe
    assert recipe["extra_inputs"] == {"x.png": file_hash(files[0]), "x-2.png": file_hash(files[1])}
    assert recipe["stages"][0]["request"]["extra"] == {"effect": {"x.png": 0.5, "x-2.png": 0.5}}


def test_a_file_named_like_an_option_value_stays_a_file():
    family = load("animatediff", preset="tiny").system.family
    for name in ("elsewhere", "0,0,1,1"):
        request = Request(extra={"effect": {f"/home/me/{name}": 0.5}})
        assert recipes.names_of([(family, request)]) == {f"/home/me/{name}": f"./{name}"}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/me/ball.png", "ball.png"),
        ("C:\\Users\\me\\ball.png", "ball.png"),
        ("~/ball.png", "ball.png"),
        ("shots/", "shots"),
        ("..", "folder"),
        ("/home/me/b\udcffll.png", "b\udcffll.png"),
    ],
)
def test_a_recipe_records_only_the_last_part_of_a_path(path, name):
    assert registry.recipe_name(path) == name


def test_a_file_named_like_a_model_is_never_taken_for_it():
    assert registry.recipe_name("/home/me/zoetrope") == "./zoetrope"


def animated(output: str, *words: str, name: str = "ball.png") -> Path:
    """Animate an image in a folder from the command line; the path of the image."""
    image = Path("secret folder").absolute() / name
    image.parent.mkdir()
    Image.new("RGB", (64, 64), "red").save(image, "PNG")
    size = ("--frames", "2", "--steps", "1", "--seed", "1", "--quiet")
    assert main(["animate", str(image), "-m", "zoetrope/tiny", *size, "-o", output, *words]) == 0
    return image


@pytest.mark.parametrize("name", ["output.mp4", "output.gif", "output.webp", "output"])
def test_no_folder_name_of_the_user_is_in_a_clip(name):
    animated(name, name="b\udcffll.png")
    for file in Path(name).iterdir() if Path(name).is_dir() else [Path(name)]:
        data = file.read_bytes()
        assert b"secret" not in data
        assert str(Path.cwd()).encode() not in data
    assert read_recipe(name)["stages"][0]["request"]["image"] == "b\udcffll.png"


def test_full_paths_are_recorded_on_request():
    image = animated("output.mp4", "--record-paths")
    recipe = read_recipe("output.mp4")
    assert recipe["paths"] == {"image": str(image)}
    assert recipe["stages"][0]["request"]["image"] == "ball.png"


def test_an_old_recipe_with_full_paths_is_replayed_from_given_files(replayed):
    animated("output.mp4")
    now = read_recipe("output.mp4")
    was = {
        "kinema": "0.9.0",
        "model": "zoetrope/tiny",
        "family": "zoetrope",
        "request": {**now["stages"][0]["request"], "image": "/home/someone/photos/ball.png"},
        "inputs": {"image": now["inputs"]["image"]},
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "versions": now["versions"],
        "weights": "seed:0",
        "frames_hash": now["frames_hash"],
    }
    code, err = replayed(was)
    assert (code, err) == (
        2,
        "kinema: replaying clip.mp4 needs ball.png; give it with --input image=PATH\n",
    )
    code, err = replayed(was, "--input", "image=secret folder/ball.png")
    assert code == 0, err
    assert "the recipe needs model zoetrope/tiny, image ball.png" in err
    assert "are identical to" in err
    assert "is not the file" not in err


def test_a_cache_path_in_an_old_recipe_becomes_a_hub_name():
    path = "/root/.cache/huggingface/hub/models--guoyww--animatediff/snapshots/0a1b/v3_sd15_mm.ckpt"
    recipe = upgraded({"model": "svd", "added": [{"slot": "motion", "file": path, "hash": "sha256:00"}]})
    (motion,) = requirements_of(recipe, [Request()]).added
    assert (motion.name, motion.source, motion.hash) == ("guoyww/animatediff/v3_sd15_mm.ckpt", "hub", "sha256:00")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("photo=a.png", "matches no input of the clip; expected --input image=PATH"),
        ("image=nowhere.png", "is not a readable file or folder of frames"),
        ("image=/dev/zero", "is not a readable file or folder of frames"),
        ("image=", "matches no input of the clip"),
    ],
)
def test_an_unknown_input_is_refused(replayed, word, message):
    request = {"task": "animate", "image": "ball.png"}
    code, err = replayed({**PLAIN, "request": request, "inputs": {"image": "00"}}, "--input", word)
    assert code == 2, err
    assert message in err
    assert "omit --input" in replayed(PLAIN, "--input", "image=ball.png")[1]


def test_an_input_without_a_hash_must_be_given(replayed):
    Image.new("RGB", (64, 64), "red").save("ball.png")
    recipe = {**PLAIN, "request": {"task": "animate", "image": "ball.png", "frames": 2, "steps": 1}}
    assert "replaying clip.mp4 needs ball.png; give it with --input image=PATH" in replayed(recipe)[1]
    code, err = replayed(recipe, "--input", "ball.png")
    assert code == 0, err
    assert "the recipe has no hash of ball.png, so it may be another file" in err


def test_a_local_folder_never_replaces_a_hub_model_of_a_recipe(replayed):
    Path("owner/name").mkdir(parents=True)
    load("zoetrope", preset="tiny")
    code, err = replayed({**PLAIN, "model": "owner/name", "weights": "sha256:00"})
    assert code == 2
    assert "needs owner/name; give it with --model PATH, or pass --allow-download" in err


def test_a_hub_model_is_not_downloaded_without_allow_download(replayed):
    assert "give it with --model PATH, or pass --allow-download" in replayed(PLAIN, "--model", "owner/name")[1]
    assert "exclude each other" in replayed(PLAIN, "--offline", "--allow-download")[1]


def test_an_absurd_thread_count_is_ignored_and_reported(replayed):
    code, err = replayed({**PLAIN, "request": {**PLAIN["request"], "steps": 1, "frames": 2}, "threads": 10**9})
    assert code == 0, err
    assert "generated with 1,000,000,000 threads" in err


def test_all_missing_files_are_listed_in_one_short_line(replayed):
    recipe = {
        **PLAIN,
        "model": f"/home/{'m' * 300}.safetensors",
        "loras": [{"file": f"/x/{'l' * 300}.safetensors", "weight": 0.5, "hash": "00"}] * 9,
        "added": [{"slot": "s" * 300, "file": f"/x/{'a' * 300}.ckpt", "hash": "00"}],
        "request": {"task": "animate", "image": f"/x/{'i' * 300}.png", "mask": "/x/m.png"},
    }
    code, err = replayed(recipe)
    assert (code, err.count("\n")) == (2, 1)
    assert len(err) < 400
    assert "--lora PATH:0.5" in err
    assert " and 9 more; give" in err


@pytest.mark.parametrize("field", [{"frames_hash": None}, {"frames_hash": ""}, {}])
def test_a_clip_without_a_frame_hash_is_not_compared(replayed, field):
    recipe = {name: value for name, value in recipe_of_tiny().items() if name != "frames_hash"}
    code, err = replayed({**recipe, **field})
    assert code == 0, err
    assert "clip.mp4 records no frame hash, so again.mp4 cannot be compared with it" in err
    assert "identical" not in err


def test_different_frames_are_reported(replayed):
    code, err = replayed({**recipe_of_tiny(), "frames_hash": "00"})
    assert code == 0, err
    assert "the frames of again.mp4 are not identical to those of clip.mp4, bit for bit" in err


def test_a_trimmed_clip_is_replayed_from_the_whole_file(capsys):
    Clip(torch.rand(1, 3, 12, 16, 16) * 2 - 1, 8.0).save("source.mp4")
    Path("ask.yaml").write_text("start: 0.25\n")
    words = ("edit", "source.mp4", "a ball", "--config", "ask.yaml", "--end", "6f", "--model", "zoetrope/tiny")
    assert main([*words, "--steps", "2", "--quiet", "-o", "output.mp4"]) == 0
    recipe = read_recipe(Path("output.mp4"))
    request = recipe["stages"][0]["request"]
    assert (request["start"], request["end"], request["frames"]) == (0.25, "6f", 4)
    assert recipe["inputs"] == {"video": file_hash(Path("source.mp4"))}
    capsys.readouterr()
    assert main(["replay", "output.mp4", "--input", "video=source.mp4", "-o", "again.mp4"]) == 0
    assert "the frames of again.mp4 are identical to those of output.mp4" in capsys.readouterr().err


def test_a_replay_of_a_partial_clip_reports_that_the_whole_clip_differs(replayed):
    recipe = {name: value for name, value in recipe_of_tiny().items() if name != "frames_hash"}
    code, err = replayed({**recipe, "partial": {"stage": "base", "step": 7, "steps": 20, "start": 0}})
    assert code == 0
    assert "clip.mp4 is a partial clip, cancelled at step 7 of 20; this replay generated the whole clip" in err
    assert "not bit-equal" in err
