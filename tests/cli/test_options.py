from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.cli.main import main
from kinema.cli.options import parse, with_defaults
from kinema.cli.replay import INPUTS
from kinema.cli.verbs import CONFIG, GROUPS, MODEL, REPORTING, VERBS, WRITING, request_from, request_options
from kinema.options import Option, from_dataclass
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


def read(*words: str) -> dict[str, Any]:
    return parse(OPTIONS, words, "kinema test", "a test")


def test_only_passed_options_are_returned():
    assert read() == {}
    assert read("hello", "--frames", "3") == {"prompt": "hello", "frames": 3}


def test_every_type_is_converted():
    words = ("--fps=12.5", "--fit", "pad", "--loop", "--region", "0,0,.5,1", "--span=-5,inf")
    assert read(*words) == {
        "fps": 12.5,
        "fit": "pad",
        "loop": True,
        "region": (0.0, 0.0, 0.5, 1.0),
        "span": (-5.0, float("inf")),
    }


def test_values_of_a_tuple_may_be_separate_arguments():
    assert read("--region", "0", "0", "1", "1", "a prompt") == {"region": (0.0, 0.0, 1.0, 1.0), "prompt": "a prompt"}
    assert read("--span", "-5", "5") == {"span": (-5.0, 5.0)}


def test_underscores_and_dashes_are_equivalent():
    options = [Option("learning_rate", float, 0.1, "")]
    assert parse(options, ["--learning_rate", "1"], "p", "a") == parse(options, ["--learning-rate=1"], "p", "a")


def test_extra_is_repeated_and_parses_plain_values():
    assert read("--extra", "motion-bucket=127", "--extra", "name=x", "--extra", "on=true") == {
        "extra": {"motion_bucket": 127, "name": "x", "on": True}
    }


def test_the_last_of_a_repeated_option_wins():
    assert read("--frames", "3", "--frames", "4") == {"frames": 4}


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
        (("--frames",), ("--frames needs a value",)),
        (("--fps", "8", "--fit"), ("--fit needs a value",)),
        (("-q",), ("-q", "it has")),
    ],
)
def test_an_unreadable_option_is_one_line(words, parts):
    with pytest.raises(BadRequest) as caught:
        read(*words)
    message = str(caught.value)
    assert "\n" not in message
    assert not set(message) & set("│╭╰─")
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.yaml", "frames: 5\nloop: true\nregion: [0, 0, 1, 0.5]\nextra: {motion-bucket: 3}\n"),
        ("c.toml", 'frames = 5\nloop = true\nregion = [0, 0, 1, 0.5]\n[extra]\n"motion-bucket" = 3\n'),
        ("c.json", json.dumps({"frames": 5, "loop": True, "region": [0, 0, 1, 0.5], "extra": {"motion-bucket": 3}})),
    ],
)
def test_a_config_file_reads_as_the_command_line_does(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    got = read("--config", str(tmp_path / name))
    got.pop("config")
    assert got == read("--frames", "5", "--loop", "--region", "0,0,1,.5", "--extra", "motion-bucket=3")


def test_the_command_line_wins_over_the_config_file(tmp_path):
    (tmp_path / "c.yaml").write_text("frames: 5\nloop: true\nprompt: from the file\n")
    got = read("--config", str(tmp_path / "c.yaml"), "--frames", "7", "--no-loop")
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
def test_a_bad_config_file_is_refused_by_name_in_one_line(tmp_path, name, text, part):
    (tmp_path / name).write_text(text)
    with pytest.raises(BadRequest) as caught:
        read("--config", str(tmp_path / name))
    assert name in str(caught.value)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_config_file_is_refused():
    with pytest.raises(BadRequest, match=r"nowhere\.yaml cannot be read"):
        read("--config", "nowhere.yaml")


def test_help_lists_every_option_and_exits_with_0(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert stop.value.code == 0
    page = capsys.readouterr().out
    assert all(f"  {o.flag}" in page for o in OPTIONS if not o.positional)


def test_help_has_the_example_first_and_every_option_once_under_its_heading(capsys):
    groups = {"main options": ("frames", "fit", "none of these"), "clip": ("fps",)}
    with pytest.raises(SystemExit):
        parse(OPTIONS, ["--help"], "kinema test", "A test.", "kinema test x", groups)
    page = capsys.readouterr().out
    marks = ["usage:", "A test.", "example:", "kinema test x", "  PROMPT", "main options:", "  --frames N"]
    marks += ["  --fit {crop,pad}", "(default: crop)", "clip:", "  --fps X", "other options:", "  --loop"]
    places = [page.index(mark) for mark in marks]
    assert places == sorted(places)
    assert all(page.count(f"  {o.flag}") == 1 for o in OPTIONS if not o.positional)


@pytest.mark.parametrize("task", sorted(VERBS))
def test_every_option_of_a_verb_has_a_heading(task):
    names = {name for group in GROUPS.values() for name in group}
    assert {o.name for o in [*request_options(task), *MODEL, *WRITING, *REPORTING] if not o.positional} <= names


def test_an_option_of_another_verb_is_refused_with_the_name_of_that_verb(capsys):
    assert main(["generate", "a ball", "--keyframe", "3=x.png"]) == 2
    assert capsys.readouterr().err == "kinema: `kinema generate` has no option --keyframe; use `kinema animate`\n"
    assert main(["plan", "a ball", "--mask=x.png"]) == 2
    assert "use `kinema plan animate` or `kinema plan inpaint`" in capsys.readouterr().err


def test_defaults_fill_missing_options():
    assert with_defaults(OPTIONS, {"frames": 2})["frames"] == 2
    assert with_defaults(OPTIONS, {})["fps"] == 8.0


@pytest.mark.parametrize("task", sorted(VERBS))
def test_every_option_of_a_verb_has_help_and_the_default_of_the_request(task):
    options = request_options(task)
    assert all(o.help for o in options)
    assert request_from(task, with_defaults(options, {})) == Request(task=task)


def test_every_field_of_a_request_is_an_option_of_some_verb():
    offered = {o.name for task in VERBS for o in request_options(task)}
    family_options = {"motion", "control", "ip_image", "embeddings"}  # these fill ``extra``
    assert offered - family_options | {"task", "loras"} == set(Request.__dataclass_fields__)


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40))
def test_any_prompt_arrives_unchanged(prompt):
    if prompt.startswith("-"):
        return
    assert read(prompt) == {"prompt": prompt}


# -------------------------------------------------------------------------------- options of single frames


def animated(*words: str) -> Request:
    return request_from("animate", parse([*request_options("animate"), CONFIG], words, "kinema animate", ""))


def test_keyframes_and_prompts_at_frames_are_repeated_and_stay_text():
    request = animated("--keyframe", "7=b.png", "--keyframe=0=1", "--prompt-at", "8-15=a = true", "--prompt-at", "4=5")
    assert request.keyframes == {"0": "1", "7": "b.png"}
    assert request.prompt_spans == {"8-15": "a = true", "4": "5"}


def test_a_config_file_has_keyframes_and_prompt_spans_as_tables(tmp_path):
    (tmp_path / "c.yaml").write_text("keyframes: {0: a.png, 7: ~/b.png}\nprompt-spans: {8-15: a ball, 4: 'on'}\n")
    request = animated("--config", str(tmp_path / "c.yaml"))
    assert request.keyframes == {"0": "a.png", "7": str(Path("~/b.png").expanduser())}
    assert request.prompt_spans == {"8-15": "a ball", "4": "on"}
    (tmp_path / "c.yaml").write_text("keyframes: {0: [a.png]}\n")
    with pytest.raises(BadRequest, match=r"c\.yaml: --keyframe is .*; expected FRAME=PATH"):
        animated("--config", str(tmp_path / "c.yaml"))


def test_a_tilde_expands_in_the_path_of_a_keyframe():
    assert animated("--keyframe", "5=~/a.png").keyframes == {"5": str(Path("~/a.png").expanduser())}
    assert animated("--prompt-at", "5=~/a").prompt_spans == {"5": "~/a"}
    given = parse(INPUTS, ["--input", "keyframe 5=~/a.png"], "kinema replay", "")
    assert given["input"] == [f"keyframe 5={Path('~/a.png').expanduser()}"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--keyframe", "a.png"), "--keyframe is 'a.png'; expected FRAME=PATH"),
        (("--prompt-at", "8"), "--prompt-at is '8'; expected FRAMES=TEXT"),
        (("--keyframe", "5=a", "--keyframe", "5=a"), "--keyframe 5 is given twice; give it once"),
        (("--keyframe", "x=a"), "keyframe 'x' is not a frame; expected 0 to 4095"),
        (("--keyframes", "5=a"), "did you mean --keyframe"),
    ],
)
def test_an_invalid_frame_is_refused(words, message):
    with pytest.raises(BadRequest, match=message):
        animated(*words)


def test_with_keyframes_a_single_argument_is_the_prompt_unless_it_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder of frames").mkdir()
    both = ("--keyframe", "0=a.png", "--keyframe", "7=b.png")
    assert (animated("a red ball. It rolls", *both).prompt, animated("a red ball", *both).image) == (
        "a red ball. It rolls",
        None,
    )
    assert animated("a red ball " * 50, *both).prompt == "a red ball " * 50  # no file system has such a name
    for word in ("folder of frames", "misspelt.png"):
        assert (animated(word, *both).image, animated(word, *both).prompt) == (word, "")
    assert (animated("first.png", "a ball", *both).image, animated("a ball").image) == (
        "first.png",
        "a ball",
    )
