"""GET /v1/options: the fields of forms are those of the command line and of `Request`."""

from __future__ import annotations

import json

import pytest

from kinema.cli.help import page
from kinema.cli.options import _entry
from kinema.schema import Request
from kinema.server.options_route import LOCAL, described
from kinema.verb_options import GROUPS, VERBS, request_options

FIELDS = described()["fields"]


def names_of(verb: str) -> list[str]:
    found = next(each for each in described()["verbs"] if each["name"] == verb)
    return [name for group in found["groups"] for name in group["fields"]]


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_has_every_field_that_its_requests_take_and_no_other(verb):
    own = {o.name for o in request_options(verb)} - LOCAL
    assert sorted(names_of(verb)) == sorted({*own, "model", "lora", "add"})


@pytest.mark.parametrize("verb", VERBS)
def test_six_fields_come_first_and_belong_to_the_verb(verb):
    first = next(each for each in described()["verbs"] if each["name"] == verb)["first"]
    assert len(first) == len(set(first)) == 6
    assert set(first) <= set(names_of(verb))


@pytest.mark.parametrize("verb", VERBS)
def test_the_groups_are_those_of_the_help_page_in_its_order(verb):
    options = [o for o in request_options(verb) if not o.positional]
    help_page = page("", "", "", [], [_entry(o) for o in options], GROUPS)
    headings = [line[:-1] for line in help_page.splitlines() if line.endswith(":") and not line.startswith(" ")]
    titles = [group["title"] for each in described()["verbs"] if each["name"] == verb for group in each["groups"]]
    assert [title for title in titles if title in headings] == [each for each in headings if each in titles]


def test_every_place_is_a_key_of_an_order():
    fields = {"model", "add", *Request.__dataclass_fields__}
    assert {row["place"].partition(".")[0] for row in FIELDS.values()} <= fields


def test_a_field_has_the_type_range_choices_and_default_of_its_option():
    assert FIELDS["steps"] | {"help": ""} == {
        "name": "steps", "label": "Steps", "help": "", "type": "integer", "place": "steps", "default": None,
        "least": 1, "most": 10_000,
    }  # fmt: skip
    assert (FIELDS["fit"]["type"], FIELDS["fit"]["choices"], FIELDS["fit"]["default"]) == (
        "choice",
        ["crop", "pad"],
        "crop",
    )
    assert FIELDS["free_init_stop"]["default"] == [0.25, 0.25]
    kinds = {
        "prompt": "long_text", "image": "file", "keyframes": "files_by_frame", "prompt_spans": "texts_by_frame",
        "region": "box", "guidance_interval": "pair", "loop": "boolean", "eta": "number", "extra": "mapping",
        "super_resolution": "model", "sampler": "text", "start": "time", "lora": "loras", "size": "size",
        "add": "add_ons",
    }  # fmt: skip
    assert {name: FIELDS[name]["type"] for name in kinds} == kinds


def test_help_speaks_of_no_command_line_and_the_answer_is_json():
    texts = " ".join(row["help"] for row in FIELDS.values())
    assert "may be repeated" not in texts
    assert "--" not in texts
    assert "kinema models" not in texts
    json.dumps(described(), allow_nan=False)
