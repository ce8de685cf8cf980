"""Options under their old names: they mean what they meant, and it is said."""

from __future__ import annotations

import pytest

from kinema.api import load
from kinema.cli.main import main
from kinema.events import Note
from kinema.media.metadata import read_recipe
from kinema.renamed import renamed
from kinema.schema import BadRequest, Request

SAID = "travel is now prompt_spans; the old name goes in the next version"


@pytest.mark.parametrize(
    "told",
    [{8: "autumn", 15: "winter"}, {"15": "winter", " 8 ": "autumn"}, "8: autumn | 15: winter", " 8:autumn|15 :winter "],
)
def test_travel_is_prompt_spans_as_a_mapping_and_as_text(told: object) -> None:
    request, notes = renamed(Request(prompt="spring", extra={"travel": told, "effect": 0.5}))
    assert request == Request(prompt="spring", prompt_spans={8: "autumn", 15: "winter"}, extra={"effect": 0.5})
    assert notes == (SAID,)


def test_a_request_without_old_names_stays_as_it_is() -> None:
    request = Request(prompt_spans={8: "autumn"}, extra={"effect": 0.5})
    assert renamed(request) == (request, ())


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ("autumn", "travel is 'autumn'; expected frames and prompts"),
        (["autumn"], r"travel is \['autumn'\]; expected a mapping"),
        ({"soon": "autumn"}, "expected whole frame numbers"),
    ],
)
def test_an_old_value_that_cannot_be_read_is_refused(told: object, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        renamed(Request(extra={"travel": told}))


def test_both_names_at_once_are_refused() -> None:
    with pytest.raises(BadRequest, match="travel is the old name of prompt_spans: give prompt_spans alone"):
        renamed(Request(prompt_spans={8: "autumn"}, extra={"travel": {8: "winter"}}))


def test_a_clip_of_the_old_name_is_that_of_the_new_one_and_it_is_said() -> None:
    model, said = load("animatediff", preset="tiny"), []
    told = {"steps": 1, "seed": 1, "frames": 4}
    old = model.generate("a red ball", extra={"travel": "3: a blue star"}, on_event=said.append, **told)
    new = model.generate("a red ball", prompt_spans={3: "a blue star"}, **told)
    assert Note(SAID) in said
    assert old.recipe["frames_hash"] == new.recipe["frames_hash"]
    assert old.recipe["stages"][0]["request"] == new.recipe["stages"][0]["request"]


def test_the_command_line_still_takes_the_old_name(tmp_path, capsys) -> None:  # noqa: ANN001
    words = ["generate", "a red ball", "-m", "animatediff/tiny", "--steps", "1", "--frames", "4", "--extra"]
    assert main([*words, "travel=3: a blue star", "-o", str(tmp_path / "a.mp4")]) == 0
    assert SAID in " ".join(capsys.readouterr().err.split())
    assert read_recipe(tmp_path / "a.mp4")["stages"][0]["request"]["prompt_spans"] == {"3": "a blue star"}
