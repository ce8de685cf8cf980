from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.cli.options import Option, from_dataclass, parse, with_defaults
from kinema.cli.replay import GIVING
from kinema.cli.verbs import CONFIG, VERBS, request_from, request_options
from kinema.schema import BadRequest, Request


@dataclass(frozen=True)
class Settings:
    prompt: str = field(default="", metadata={"help": "what to show"})
    frames: int | None = field(default=None, metadata={"help": "frames"})
    fps: float = 8.0
    fit: Literal["crop", "pad"] = "crop"
    region: tuple[float, float, float, float] | None = None
    span: tuple[float, float] = (float("-inf"), float("inf"))
    loop: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


OPTIONS = [*from_dataclass(Settings, positional=["prompt"]), Option("config", Path | None, None, "a file")]


def told(*words: str) -> dict[str, Any]:
    return parse(OPTIONS, words, "kinema test", "a test")


def test_only_what_was_told_is_returned():
    assert told() == {}
    assert told("hello", "--frames", "3") == {"prompt": "hello", "frames": 3}


def test_every_type_is_read():
    words = ("--fps=12.5", "--fit", "pad", "--loop", "--region", "0,0,.5,1", "--span=-5,inf")
    assert told(*words) == {
        "fps": 12.5,
        "fit": "pad",
        "loop": True,
        "region": (0.0, 0.0, 0.5, 1.0),
        "span": (-5.0, float("inf")),
    }


def test_numbers_of_a_tuple_may_stand_apart():
    assert told("--region", "0", "0", "1", "1", "a prompt") == {"region": (0.0, 0.0, 1.0, 1.0), "prompt": "a prompt"}
    assert told("--span", "-5", "5") == {"span": (-5.0, 5.0)}


def test_underscores_and_dashes_are_one_spelling():
    options = [Option("learning_rate", float, 0.1, "")]
    assert parse(options, ["--learning_rate", "1"], "p", "a") == parse(options, ["--learning-rate=1"], "p", "a")


def test_extra_is_repeated_and_holds_plain_values():
    assert told("--extra", "motion-bucket=127", "--extra", "name=x", "--extra", "on=true") == {
        "extra": {"motion_bucket": 127, "name": "x", "on": True}
    }


def test_the_last_of_a_repeated_option_wins():
    assert told("--frames", "3", "--frames", "4") == {"frames": 4}


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--frames", "abc"), ("--frames is 'abc'", "whole number")),
        (("--frames", "1.5"), ("--frames is '1.5'", "whole number")),
        (("--frames", "10^9"), ("--frames is '10^9'", "whole number")),
        (("--fps", "fast"), ("--fps is 'fast'", "a number")),
        (("--fit", "stretch"), ("--fit is 'stretch'", "crop or pad")),
        (("--region", "0,0,1"), ("--region", "4 numbers")),
        (("--extra", "novalue"), ("--extra", "KEY=VALUE")),
        (("--framez", "3"), ("--framez", "did you mean --frames")),
        (("a", "red", "ball"), ("unexpected 'red'", "quotes")),
        (("--frames",), ("--frames",)),
        (("-q",), ("-q", "there are")),
    ],
)
def test_what_cannot_be_read_is_one_sentence(words, parts):
    with pytest.raises(BadRequest) as caught:
        told(*words)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert not set(sentence) & set("│╭╰─")
    for part in parts:
        assert part in sentence


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.yaml", "frames: 5\nloop: true\nregion: [0, 0, 1, 0.5]\nextra: {motion-bucket: 3}\n"),
        ("c.toml", 'frames = 5\nloop = true\nregion = [0, 0, 1, 0.5]\n[extra]\n"motion-bucket" = 3\n'),
        ("c.json", json.dumps({"frames": 5, "loop": True, "region": [0, 0, 1, 0.5], "extra": {"motion-bucket": 3}})),
    ],
)
def test_a_config_file_says_the_same_as_the_command_line(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    got = told("--config", str(tmp_path / name))
    got.pop("config")
    assert got == told("--frames", "5", "--loop", "--region", "0,0,1,.5", "--extra", "motion-bucket=3")


def test_the_command_line_wins_over_the_config_file(tmp_path):
    (tmp_path / "c.yaml").write_text("frames: 5\nloop: true\nprompt: from the file\n")
    got = told("--config", str(tmp_path / "c.yaml"), "--frames", "7", "--no-loop")
    assert (got["frames"], got["loop"], got["prompt"]) == (7, False, "from the file")


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("c.yaml", "framez: 5", "did you mean frames"),
        ("c.yaml", "frames: five", "whole number"),
        ("c.yaml", "frames: true", "whole number"),
        ("c.yaml", "frames: [1", "line 1 is not YAML"),
        ("c.yaml", "- 1", "no table"),
        ("c.yaml", "!!python/object/apply:os.system ['true']", "damaged"),
        ("c.toml", "frames = ", "damaged"),
        ("c.json", "{", "damaged"),
        ("c.txt", "frames: 1", ".yaml"),
        ("c.yaml", "config: other.yaml", "no option 'config'"),
    ],
)
def test_a_bad_config_file_is_one_sentence_that_names_it(tmp_path, name, text, part):
    (tmp_path / name).write_text(text)
    with pytest.raises(BadRequest) as caught:
        told("--config", str(tmp_path / name))
    assert name in str(caught.value)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_config_file_is_refused():
    with pytest.raises(BadRequest, match=r"nowhere\.yaml cannot be read"):
        told("--config", "nowhere.yaml")


def test_help_prints_every_option_and_ends_well(capsys):
    with pytest.raises(SystemExit) as stop:
        told("--help")
    assert stop.value.code == 0
    page = capsys.readouterr().out
    assert all(o.flag in page for o in OPTIONS if not o.positional)


def test_defaults_fill_what_was_not_told():
    assert with_defaults(OPTIONS, {"frames": 2})["frames"] == 2
    assert with_defaults(OPTIONS, {})["fps"] == 8.0


@pytest.mark.parametrize("task", sorted(VERBS))
def test_every_option_of_a_verb_has_help_and_its_defaults_make_the_default_request(task):
    options = request_options(task)
    assert all(o.help for o in options)
    assert request_from(task, with_defaults(options, {})) == Request(task=task)


def test_every_field_of_a_request_is_an_option_of_some_verb():
    offered = {o.name for task in VERBS for o in request_options(task)}
    of_families = {"motion", "control", "ip_image"}  # they fill ``extra``
    assert offered - of_families | {"task", "loras"} == set(Request.__dataclass_fields__)


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40))
def test_any_prompt_arrives_as_it_was_typed(prompt):
    if prompt.startswith("-"):
        return
    assert told(prompt) == {"prompt": prompt}


# -------------------------------------------------------------------------------- options of single frames


def asked(*words: str) -> Request:
    return request_from("animate", parse([*request_options("animate"), CONFIG], words, "kinema animate", ""))


def test_keyframes_and_prompts_at_frames_are_repeated_and_stay_text():
    request = asked("--keyframe", "7=b.png", "--keyframe=0=1", "--prompt-at", "8-15=a = true", "--prompt-at", "4=5")
    assert request.keyframes == {"0": "1", "7": "b.png"}
    assert request.prompt_spans == {"8-15": "a = true", "4": "5"}


def test_a_config_file_has_frames_with_texts_as_tables(tmp_path):
    (tmp_path / "c.yaml").write_text("keyframes: {0: a.png, 7: ~/b.png}\nprompt-spans: {8-15: a ball, 4: 'on'}\n")
    request = asked("--config", str(tmp_path / "c.yaml"))
    assert request.keyframes == {"0": "a.png", "7": str(Path("~/b.png").expanduser())}
    assert request.prompt_spans == {"8-15": "a ball", "4": "on"}
    (tmp_path / "c.yaml").write_text("keyframes: {0: [a.png]}\n")
    with pytest.raises(BadRequest, match=r"c\.yaml: --keyframe is .*; expected FRAME=PATH"):
        asked("--config", str(tmp_path / "c.yaml"))


def test_the_home_of_a_keyframes_file_is_found():
    assert asked("--keyframe", "5=~/a.png").keyframes == {"5": str(Path("~/a.png").expanduser())}
    assert asked("--prompt-at", "5=~/a").prompt_spans == {"5": "~/a"}
    given = parse(GIVING, ["--input", "keyframe 5=~/a.png"], "kinema replay", "")
    assert given["input"] == [f"keyframe 5={Path('~/a.png').expanduser()}"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--keyframe", "a.png"), r"--keyframe is \['a.png'\]; expected FRAME=PATH"),
        (("--prompt-at", "8"), r"--prompt-at is \['8'\]; expected FRAMES=TEXT"),
        (("--keyframe", "5=a", "--keyframe", "5=a"), "--keyframe 5 is given twice; give it once"),
        (("--keyframe", "x=a"), "keyframe 'x' is not a frame; expected 0 to 4095"),
        (("--keyframes", "5=a"), "did you mean --keyframe"),
    ],
)
def test_a_frame_that_cannot_be_read_is_refused(words, says):
    with pytest.raises(BadRequest, match=says):
        asked(*words)


def test_beside_keyframes_one_word_is_the_prompt_unless_it_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder of frames").mkdir()
    both = ("--keyframe", "0=a.png", "--keyframe", "7=b.png")
    assert (asked("a red ball. It rolls", *both).prompt, asked("a red ball", *both).image) == (
        "a red ball. It rolls",
        None,
    )
    assert asked("a red ball " * 50, *both).prompt == "a red ball " * 50  # no file system has such a name
    for word in ("folder of frames", "misspelt.png"):
        assert (asked(word, *both).image, asked(word, *both).prompt) == (word, "")
    assert (asked("first.png", "a ball", *both).image, asked("a ball").image) == ("first.png", "a ball")
