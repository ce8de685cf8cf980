"""Deprecated option names: same meaning, with a note."""

from __future__ import annotations

import pytest

from kinema.api import load
from kinema.cli.main import main
from kinema.deprecated import renamed
from kinema.events import Note
from kinema.media.metadata import read_recipe
from kinema.schema import BadRequest, Request

NOTE = "travel is now --prompt-at (prompt_spans in Python); the next version removes the old name"


@pytest.mark.parametrize(
    "travel",
    [{8: "autumn", 15: "winter"}, {"15": "winter", " 8 ": "autumn"}, "8: autumn | 15: winter", " 8:autumn|15 :winter "],
)
def test_travel_becomes_prompt_spans(travel: object) -> None:
    request, notes = renamed(Request(prompt="spring", extra={"travel": travel, "effect": 0.5}))
    assert request == Request(prompt="spring", prompt_spans={8: "autumn", 15: "winter"}, extra={"effect": 0.5})
    assert notes == (NOTE,)


def test_a_request_without_old_names_is_unchanged() -> None:
    request = Request(prompt_spans={8: "autumn"}, extra={"effect": 0.5})
    assert renamed(request) == (request, ())


@pytest.mark.parametrize(
    ("travel", "message"),
    [
        ("autumn", "travel is 'autumn'; expected frames and prompts"),
        (["autumn"], r"travel is \['autumn'\]; expected a mapping"),
        ({"soon": "autumn"}, "travel has a frame that is not a whole number"),
    ],
)
def test_an_invalid_old_value_is_refused(travel: object, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        renamed(Request(extra={"travel": travel}))


def test_both_names_together_are_refused() -> None:
    with pytest.raises(BadRequest, match="travel is the old name of --prompt-at: give only --prompt-at"):
        renamed(Request(prompt_spans={8: "autumn"}, extra={"travel": {8: "winter"}}))


def test_the_old_name_gives_the_same_clip_and_a_note() -> None:
    model, events = load("animatediff", preset="tiny"), []
    ask = {"steps": 1, "seed": 1, "frames": 4}
    old = model.generate("a red ball", extra={"travel": "3: a blue star"}, on_event=events.append, **ask)
    new = model.generate("a red ball", prompt_spans={3: "a blue star"}, **ask)
    assert Note(NOTE) in events
    assert old.recipe["frames_hash"] == new.recipe["frames_hash"]
    assert old.recipe["stages"][0]["request"] == new.recipe["stages"][0]["request"]


def test_the_command_line_accepts_the_old_name(tmp_path, capsys) -> None:  # noqa: ANN001
    words = ["generate", "a red ball", "-m", "animatediff/tiny", "--steps", "1", "--frames", "4", "--extra"]
    assert main([*words, "travel=3: a blue star", "-o", str(tmp_path / "a.mp4")]) == 0
    assert NOTE in " ".join(capsys.readouterr().err.split())
    assert read_recipe(tmp_path / "a.mp4")["stages"][0]["request"]["prompt_spans"] == {"3": "a blue star"}
