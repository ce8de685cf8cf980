"""Shapes, canvases and requests: validation, error messages and the JSON round trip."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kinema import schema
from kinema.canvas import Canvas
from kinema.schema import MAX_FRAMES, BadRequest, Request, Shape, plain_number


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frames", 0),
        ("frames", 10**9),
        ("height", -1),
        ("width", 10**6),
        ("steps", 0),
        ("strength", 1.5),
        ("clips", 0),
        ("fps", 0),
        ("guidance", float("nan")),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(field: str, value: float) -> None:
    with pytest.raises(BadRequest, match=rf"{field} is .*expected"):
        Request(prompt="a red ball", **{field: value})


def test_the_defaults_which_no_request_checks_are_valid_and_in_their_stored_form() -> None:
    for f in dataclasses.fields(Request):
        if f.default is not dataclasses.MISSING:
            assert schema._normalised(f, f.default) is f.default
            schema._check(f, f.default)


def test_too_many_pixels_are_refused() -> None:
    with pytest.raises(BadRequest, match="pixels"):
        Request(prompt="x", frames=MAX_FRAMES, height=8192, width=8192)


@pytest.mark.parametrize("value", [2.5, True, "8"])
def test_a_count_that_is_not_a_whole_number_is_refused(value: object) -> None:
    with pytest.raises(BadRequest, match="steps is"):
        Request(prompt="x", steps=value)  # type: ignore[arg-type]


WRONG = [3, -1.5, True, "words", ["a"], [1, 2, 3], {"a": "b"}, {1: 2}, 10**400, b"bytes", object()]


def test_every_field_refuses_values_of_the_wrong_type_in_one_short_sentence() -> None:
    """The accepted types are written out here, so that the check is not compared with itself."""
    accepts_type: dict[str, Callable[[Any], bool]] = {
        "str": lambda v: isinstance(v, str),
        "bool": lambda v: isinstance(v, bool),
        "int": lambda v: type(v) is int,
        "float": lambda v: type(v) in (int, float),
        "str | float": lambda v: type(v) in (str, int, float),
        "tuple[float, float]": lambda _: False,
        "tuple[float, float, float, float]": lambda _: False,
        "Mapping[str, float]": lambda _: False,
        "Mapping[str, str]": lambda v: v == {"a": "b"},
        "Mapping[str, Any]": lambda v: v == {"a": "b"},
    }
    for field in dataclasses.fields(Request):
        accepts = accepts_type.get(str(field.type).removesuffix(" | None"), lambda _: False)
        one = {"keyframes": "keyframe ", "masks": "mask at ", "prompt_spans": "prompt at "}.get(field.name, "no entry")
        for value in WRONG:
            by_frame = field.name in ("keyframes", "masks")  # whose frames are integers
            if accepts(value) and value != 10**400 and not by_frame:
                continue
            with pytest.raises(BadRequest, match=rf"^({field.name} is .*; expected |{one})") as caught:
                Request(**{field.name: value})
            assert len(str(caught.value)) < 200


def test_paths_lists_and_numpy_values_are_accepted() -> None:
    request = Request(
        image=Path("a.png"), region=[0, 0, 1, 1], guidance=3, fps=np.float64(8), guidance_interval=(-math.inf, 0)
    )
    assert (request.image, request.region, request.guidance, request.fps) == ("a.png", (0, 0, 1, 1), 3, 8)
    assert Request.from_json(request.to_json()) == request


@pytest.mark.parametrize("data", [[], "x", 3, None, {"prompt": None}, {1: 2}])
def test_a_request_that_is_not_a_table_of_options_is_refused(data: object) -> None:
    with pytest.raises(BadRequest):
        Request.from_table(data)


def test_a_reversed_guidance_interval_is_refused() -> None:
    with pytest.raises(BadRequest, match="guidance_interval"):
        Request(prompt="x", guidance_interval=(5, -5))
    for nothing in ((math.inf, math.inf), (-math.inf, -math.inf)):  # in JSON these would be open ends
        with pytest.raises(BadRequest, match="guidance_interval"):
            Request(prompt="x", guidance_interval=nothing)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sampler_options": {"churn_max": math.inf}}, "sampler_options 'churn_max' is inf; expected a finite number"),
        ({"loras": {"a": math.nan}}, "loras 'a' is nan; expected a finite number"),
        ({"region": (0, 0, math.inf, 1)}, "region is inf; expected a finite number"),
        ({"extra": {"a": {"b": [1, -math.inf]}}}, "extra 'a' 'b' is -inf; expected a finite number"),
    ],
)
def test_numbers_that_json_cannot_record_are_refused(given: dict, message: str) -> None:
    with pytest.raises(BadRequest) as refused:
        Request(**given)
    assert str(refused.value) == message


def test_a_region_outside_the_frame_is_refused() -> None:
    with pytest.raises(BadRequest, match="region"):
        Request(region=(0.5, 0, 0.2, 1))


def test_a_request_round_trips_through_json() -> None:
    request = Request(
        task="inpaint", prompt="ein Ball \u2192", region=(0.0, 0.1, 0.5, 1.0), seed=3, extra={"motion": 40}
    )
    assert Request.from_json(request.to_json()) == request


def test_paths_and_frame_numbers_in_family_options_become_text() -> None:
    extra = {"control": Path("a.mp4"), "effect": {Path("m.png"): 0.5}, "ip_image": {0: [Path("x.png")], "4": "y.png"}}
    again = Request.from_json(Request(extra=extra).to_json()).extra
    assert again == {"control": "a.mp4", "effect": {"m.png": 0.5}, "ip_image": {"0": ["x.png"], "4": "y.png"}}


def test_frame_numbers_and_paths_are_stored_as_text() -> None:
    request = Request(keyframes={np.int64(7): Path("a.png"), "05": "b.png", 0: "c"}, prompt_spans={8: "x", "9-12": "y"})
    assert list(request.keyframes.items()) == [("0", "c"), ("5", "b.png"), ("7", "a.png")]
    assert request.prompt_spans == {"8": "x", "9-12": "y"}
    assert Request.from_json(request.to_json()) == request


@pytest.mark.parametrize(
    "keyframes",
    [{"x": "a.png"}, {-1: "a"}, {MAX_FRAMES: "a"}, {True: "a"}, {10**5000: "a"}, {"9" * 5000: "a"}, {1.0: "a"}, {5: ""}]
    + [{5: 3}, {5: "a", "5": "b"}, {"5": "a", "05": "b"}, {"\u0665": "a"}],
)
def test_invalid_and_repeated_keyframes_are_refused(keyframes: dict) -> None:
    with pytest.raises(BadRequest, match=r"^keyframe .*(expected|given twice)") as caught:
        Request(keyframes=keyframes)
    assert len(str(caught.value)) < 200


def test_files_are_listed_and_replaced_by_role() -> None:
    request = Request(image="a.png", mask="m.png", keyframes={12: "c.png", 5: "b.png"}, prompt="a.png")
    assert list(request.files().items()) == [
        ("image", "a.png"),
        ("mask", "m.png"),
        ("keyframe 5", "b.png"),
        ("keyframe 12", "c.png"),
    ]
    other = request.with_files({"image": "x.png", "keyframe 12": "y.png"})
    assert other == request.with_(image="x.png", keyframes={5: "b.png", 12: "y.png"})
    assert request.with_files({}) == request
    assert Request().files() == {}


def test_an_unknown_option_is_refused_by_name() -> None:
    with pytest.raises(BadRequest, match="telepathy"):
        Request.from_json('{"task": "generate", "telepathy": 1}')


def test_patches_that_do_not_divide_the_shape_are_refused() -> None:
    assert Shape(1, 3, 16, 64, 32).grid((4, 8, 8)) == (4, 8, 4)
    with pytest.raises(BadRequest, match="divide"):
        Shape(1, 3, 15, 64, 32).grid((4, 8, 8))


def test_canvas_kinds() -> None:
    def kind(*frames: int, region: bool = False) -> str:
        mask = torch.zeros(2, 1, 8, 4, 4)
        mask[:, :, list(frames)] = 1
        if region:
            mask[..., :2, :] = 0
        return Canvas.of(torch.zeros(2, 3, 8, 4, 4), mask).kind

    assert kind() == "nothing"
    assert kind(0) == "first"
    assert kind(0, 7) == "ends"
    assert kind(0, 1, 2) == "prefix"
    assert kind(6, 7) == "suffix"
    assert kind(0, 3, 6) == "frames"
    assert kind(*range(8)) == "all"
    assert kind(0, 1, region=True) == "region"


def test_schema_events_grid_and_registry_import_without_torch() -> None:
    code = "import sys, kinema.schema, kinema.events, kinema.grid, kinema.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [(8.0, "8"), (0.1, "0.1"), (-100, "-100"), (2.0**31, "2147483648"), (1e308, "1e+308"), (-math.inf, "-inf")],
)
def test_numbers_are_formatted_briefly(value: float, text: str) -> None:
    assert plain_number(value) == text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": -1}, "seed is -1; expected 0 to 9,223,372,036,854,775,807"),
        ({"seed": 2**64}, "seed is 18446744073709551616; expected 0 to 9,223,372,036,854,775,807"),
        ({"steps": 99999}, "steps is 99999; expected 1 to 10,000"),
        ({"eta": 1.5}, "eta is 1.5; expected 0 to 1"),
    ],
)
def test_whole_numbers_in_messages_have_no_exponent(given: dict[str, float], message: str) -> None:
    with pytest.raises(BadRequest) as refused:
        Request(**given)  # type: ignore[arg-type]
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("interval", "text"),
    [((-math.inf, 0.0), [None, 0.0]), ((-2.0, math.inf), [-2.0, None]), ((-1.0, 1.0), [-1.0, 1.0])],
)
def test_an_open_end_of_a_range_is_null_in_json(interval: tuple[float, float], text: list[float | None]) -> None:
    request = Request(guidance_interval=interval)
    strict = json.loads(request.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert strict["guidance_interval"] == text
    assert Request.from_table(strict) == request == Request.from_table({"guidance_interval": list(interval)})
