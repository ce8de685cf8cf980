"""What a replay takes from a recipe, what it refuses, and what it names as different."""

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
from kinema.cli.requirements import wants_of
from kinema.media.metadata import read_recipe
from kinema.provenance import file_hash
from kinema.recipes import upgraded
from kinema.schema import BadRequest, Clip, Request

PLAIN = {"model": "zoetrope/tiny", "request": {"task": "generate", "prompt": "a ball"}}
ASKING = "which a replay does not look for; give"


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

    monkeypatch.setattr("kinema.api.load", opening)
    return told


def made(**options: Any) -> dict[str, Any]:
    """The recipe of a clip of the untrained model."""
    clip = load("zoetrope", preset="tiny", **options).generate("a ball", steps=1, seed=1)
    return dict(clip.recipe)


def test_a_clip_of_a_preset_opened_in_python_is_replayed(said):
    code, err = said(made())
    assert code == 0, err
    assert "are identical to" in err
    assert "are not identical" not in err


def test_variant_overrides_and_device_are_those_of_the_recipe(said, opened):
    recipe = made()
    opened.clear()
    said({**recipe, "stages": [{**recipe["stages"][0], "variant": "fp16"}]})
    assert (opened["source"], opened["variant"], opened["device"]) == ("zoetrope/tiny", "fp16", "cpu")


def test_overrides_are_rebuilt_with_the_tuples_that_json_lost(said, opened):
    recipe = made()
    said({**recipe, "stages": [{**recipe["stages"][0], "overrides": {"nothing": [1, [2, 3]]}}]})
    assert opened["overrides"] == {"nothing": (1, (2, 3))}


@pytest.mark.parametrize("wrong", [{"depth": "deep"}, {"depth": 2.5}, {"words": [1]}, {"nothing": 1}, {"depth": 10**9}])
def test_overrides_of_another_type_or_of_absurd_size_are_refused(said, wrong):
    code, err = said({**PLAIN, "overrides": wrong})
    assert code == 2, err
    assert "overrides" in err


def test_a_clip_made_with_overrides_is_the_same_to_the_bit(said):
    model = load("zoetrope", preset="tiny")
    config = model.system.config
    name = next(f for f in vars(config) if isinstance(getattr(config, f), tuple))
    model = load("zoetrope", preset="tiny", overrides={name: getattr(config, name)})
    recipe = dict(model.generate("a ball", steps=1, seed=1).recipe)
    assert name in recipe["stages"][0]["overrides"]
    code, err = said(recipe)
    assert code == 0, err
    assert "are not identical" not in err


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
    assert "noise given by the caller" in err


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
def test_a_damaged_recipe_is_one_sentence(said, wrong):
    code, err = said({**PLAIN, **wrong})
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
"""A recipe with every name that one can have; its LoRA, inputs and the like are not here."""


def changed(value: Any) -> Iterator[Any]:
    """The value with each of its parts in turn as each type of JSON."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        for other in (*JSON, *changed(part)):
            again = copy(value)
            again[name] = other
            yield again


def test_no_value_of_any_type_in_a_recipe_ends_in_an_error_of_python(monkeypatch):
    held: list[Any] = []
    monkeypatch.setattr("kinema.media.metadata.read_recipe", lambda _path: held[0])
    monkeypatch.setattr("kinema.api.Model.run", lambda *_, **__: pytest.fail("it was run"))
    count = 0
    for recipe in changed(WHOLE):
        held[:] = [recipe]
        with pytest.raises(BadRequest) as error:
            replay.replay(["clip.mp4", "-o", "again.mp4", "--quiet"])
        assert len(str(error.value)) < 380, recipe
        count += 1
    assert count > 300


@pytest.mark.parametrize("name", ["device", "dtype", "kinema", "threads", "weights", "zoom", "variant", "versions"])
def test_a_value_that_is_null_is_damage(said, name):
    code, err = said({**PLAIN, name: None})
    assert code == 2, err
    assert f"the recipe in clip.mp4 is damaged: its {name} is null; expected" in err


def test_the_clip_that_a_replay_makes_carries_the_recipe_again(said):
    said(made())
    assert read_recipe("again.mp4")["frames_hash"] == read_recipe("clip.mp4")["frames_hash"]


def test_files_in_options_of_the_family_are_asked_for_by_name_and_another_one_is_said(said):
    mask = Path("here/mask.png")
    mask.parent.mkdir()
    Image.new("L", (16, 16), 255).save(mask)
    tiny = load("animatediff", preset="tiny")
    recipe = dict(tiny.generate("a ball", steps=1, seed=1, frames=2, extra={"effect": {mask: 0.5}}).recipe)
    assert (list(recipe["extra_inputs"]), recipe["stages"][0]["request"]["extra"]) == (
        ["mask.png"],
        {"effect": {"mask.png": 0.5}},
    )
    code, err = said(recipe)
    assert (code, err) == (
        2,
        f"kinema: clip.mp4 was made from mask.png, {ASKING} it with --input mask.png=PATH\n",
    )
    for word in ("mask.png=here/mask.png", "here/mask.png"):
        code, err = said(recipe, "--input", word, "--overwrite")
        assert (code, "are identical to" in err, "is not the file" in err) == (0, True, False), err
    Image.new("L", (16, 16), 10).save("other.png")
    code, err = said(recipe, "--overwrite", "--input", "mask.png=other.png")
    assert code == 0, err
    assert "other.png is not the file that the clip was made from" in err


def test_two_files_of_one_name_are_told_apart():
    files = [Path(folder) / "x.png" for folder in ("a", "b")]
    for level, file in enumerate(files):
        file.parent.mkdir()
        Image.new("L", (16, 16), 255 * level).save(file)
    extra = {"effect": {str(file): 0.5 for file in files}}
    told = load("animatediff", preset="tiny").generate("a ball", steps=1, seed=1, frames=2, extra=extra).recipe
    assert told["extra_inputs"] == {"x.png": file_hash(files[0]), "x-2.png": file_hash(files[1])}
    assert told["stages"][0]["request"]["extra"] == {"effect": {"x.png": 0.5, "x-2.png": 0.5}}


def test_a_name_that_an_option_reads_as_something_else_stays_a_file():
    family = load("animatediff", preset="tiny").system.family
    for name in ("elsewhere", "0,0,1,1"):
        request = Request(extra={"effect": {f"/home/me/{name}": 0.5}})
        assert recipes.names_of(family, request) == {f"/home/me/{name}": f"./{name}"}


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
def test_a_recipe_calls_a_file_by_its_last_part(path, name):
    assert registry.called(path) == name


def test_a_file_with_a_name_of_ours_is_never_taken_for_it():
    assert registry.called("/home/me/zoetrope") == "./zoetrope"


def animated(output: str, *words: str, name: str = "ball.png") -> Path:
    """The picture in a folder that is animated from the command line."""
    picture = Path("secret folder").absolute() / name
    picture.parent.mkdir()
    Image.new("RGB", (64, 64), "red").save(picture, "PNG")
    size = ("--frames", "2", "--steps", "1", "--seed", "1", "--quiet")
    assert main(["animate", str(picture), "-m", "zoetrope/tiny", *size, "-o", output, *words]) == 0
    return picture


@pytest.mark.parametrize("name", ["made.mp4", "made.gif", "made.webp", "made"])
def test_no_folder_of_the_users_is_in_a_clip(name):
    animated(name, name="b\udcffll.png")
    for file in Path(name).iterdir() if Path(name).is_dir() else [Path(name)]:
        data = file.read_bytes()
        assert b"secret" not in data
        assert str(Path.cwd()).encode() not in data
    assert read_recipe(name)["stages"][0]["request"]["image"] == "b\udcffll.png"


def test_full_paths_are_kept_beside_the_names_where_asked():
    picture = animated("made.mp4", "--record-paths")
    told = read_recipe("made.mp4")
    assert told["paths"] == {"image": str(picture)}
    assert told["stages"][0]["request"]["image"] == "ball.png"


def test_a_recipe_with_full_paths_as_they_were_written_before_is_replayed_from_what_is_given(said):
    animated("made.mp4")
    now = read_recipe("made.mp4")
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
    code, err = said(was)
    assert (code, err) == (
        2,
        f"kinema: clip.mp4 was made from ball.png, {ASKING} it with --input image=PATH\n",
    )
    code, err = said(was, "--input", "image=secret folder/ball.png")
    assert code == 0, err
    assert "the recipe wants model zoetrope/tiny, image ball.png" in err
    assert "are identical to" in err
    assert "is not the file" not in err


def test_what_older_recipes_held_of_the_hubs_cache_is_wanted_from_the_hub():
    path = "/root/.cache/huggingface/hub/models--guoyww--animatediff/snapshots/0a1b/v3_sd15_mm.ckpt"
    told = upgraded({"model": "svd", "added": [{"slot": "motion", "file": path, "hash": "sha256:00"}]})
    (motion,) = wants_of(told, [Request()]).added
    assert (motion.name, motion.source, motion.hash) == ("guoyww/animatediff/v3_sd15_mm.ckpt", "hub", "sha256:00")


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("picture=a.png", "no input of the clip; expected NAME=PATH, NAME out of image"),
        ("image=nowhere.png", "is no file or folder of frames that can be read"),
        ("image=/dev/zero", "is no file or folder of frames that can be read"),
        ("image=", "no input of the clip"),
    ],
)
def test_an_input_that_is_none_is_refused(said, word, sentence):
    request = {"task": "animate", "image": "ball.png"}
    code, err = said({**PLAIN, "request": request, "inputs": {"image": "00"}}, "--input", word)
    assert code == 2, err
    assert sentence in err
    assert "leave out --input" in said(PLAIN, "--input", "image=ball.png")[1]


def test_an_input_without_a_hash_is_opened_only_where_it_is_given(said):
    Image.new("RGB", (64, 64), "red").save("ball.png")
    recipe = {**PLAIN, "request": {"task": "animate", "image": "ball.png", "frames": 2, "steps": 1}}
    assert "from ball.png, which a replay does not look for; give it with --input image=PATH" in said(recipe)[1]
    code, err = said(recipe, "--input", "ball.png")
    assert code == 0, err
    assert "nothing tells whether ball.png is the file" in err


def test_a_folder_here_takes_no_models_place_that_a_recipe_names_on_the_hub(said):
    Path("owner/name").mkdir(parents=True)
    load("zoetrope", preset="tiny")
    code, err = said({**PLAIN, "model": "owner/name", "weights": "sha256:00"})
    assert code == 2
    assert f"from owner/name, {ASKING} it with --model PATH, or pass --allow-download" in err


def test_a_model_given_by_its_name_on_the_hub_is_looked_for_in_the_cache_alone(said):
    assert "give it with --model PATH, or pass --allow-download" in said(PLAIN, "--model", "owner/name")[1]
    assert "do not go together" in said(PLAIN, "--offline", "--allow-download")[1]


def test_threads_beyond_the_machines_are_left_to_it_and_said(said):
    code, err = said({**PLAIN, "request": {**PLAIN["request"], "steps": 1, "frames": 2}, "threads": 10**9})
    assert code == 0, err
    assert "made with 1,000,000,000 threads" in err


def test_everything_that_is_missing_is_asked_for_in_one_short_sentence(said):
    recipe = {
        **PLAIN,
        "model": f"/home/{'m' * 300}.safetensors",
        "loras": [{"file": f"/x/{'l' * 300}.safetensors", "weight": 0.5, "hash": "00"}] * 9,
        "added": [{"slot": "s" * 300, "file": f"/x/{'a' * 300}.ckpt", "hash": "00"}],
        "request": {"task": "animate", "image": f"/x/{'i' * 300}.png", "mask": "/x/m.png"},
    }
    code, err = said(recipe)
    assert (code, err.count("\n")) == (2, 1)
    assert len(err) < 400
    assert "--lora PATH:0.5" in err
    assert " and 9 more, which" in err


@pytest.mark.parametrize("told", [{"frames_hash": None}, {"frames_hash": ""}, {}])
def test_a_clip_without_a_hash_is_not_called_another(said, told):
    recipe = {name: value for name, value in made().items() if name != "frames_hash"}
    code, err = said({**recipe, **told})
    assert code == 0, err
    assert "clip.mp4 records no hash of its frames" in err
    assert "identical to them" in err
    assert "not identical" not in err


def test_other_frames_are_said_to_be_not_identical(said):
    code, err = said({**made(), "frames_hash": "00"})
    assert code == 0, err
    assert "the frames of again.mp4 are not identical to those of clip.mp4, bit for bit" in err


def test_a_trimmed_clip_is_replayed_from_the_whole_file(capsys):
    Clip(torch.rand(1, 3, 12, 16, 16) * 2 - 1, 8.0).save("source.mp4")
    Path("ask.yaml").write_text("start: 0.25\n")
    words = ("edit", "source.mp4", "a ball", "--config", "ask.yaml", "--end", "6f", "--model", "zoetrope/tiny")
    assert main([*words, "--steps", "2", "--quiet", "-o", "made.mp4"]) == 0
    recipe = read_recipe(Path("made.mp4"))
    request = recipe["stages"][0]["request"]
    assert (request["start"], request["end"], request["frames"]) == (0.25, "6f", 4)
    assert recipe["inputs"] == {"video": file_hash(Path("source.mp4"))}
    capsys.readouterr()
    assert main(["replay", "made.mp4", "--input", "video=source.mp4", "-o", "again.mp4"]) == 0
    assert "the frames of again.mp4 are identical to those of made.mp4" in capsys.readouterr().err


def test_a_replay_of_a_partial_clip_says_that_the_whole_one_is_another(said):
    recipe = {name: value for name, value in made().items() if name != "frames_hash"}
    code, err = said({**recipe, "partial": {"stage": "base", "step": 7, "steps": 20, "start": 0}})
    assert code == 0
    assert "clip.mp4 is a partial clip, cancelled at step 7 of 20; this replay made the whole clip" in err
    assert "not bit-equal" in err
