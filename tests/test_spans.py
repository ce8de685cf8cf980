"""Prompts over frames: what a request's spans are read as, how prompts are mixed, and what is refused."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinema.schema import BadRequest, Request
from kinema.spans import MOST, Spans, Stop, check, spans_of


def spans(told: dict, prompt: str = "") -> Spans:
    found = spans_of(Request(prompt=prompt, prompt_spans=told))
    assert found is not None
    return found


def test_a_request_of_one_prompt_has_no_spans() -> None:
    assert spans_of(Request(prompt="spring")) is None


def test_the_prompt_is_that_of_frame_0_unless_a_span_covers_it_or_it_is_empty() -> None:
    assert spans({8: "autumn"}, "spring").stops == (Stop(0, 0, "spring"), Stop(8, 8, "autumn"))
    assert spans({"0-3": "summer", 8: "autumn"}, "spring").texts == ("summer", "autumn")
    assert spans({8: "autumn"}, "  ").stops == (Stop(8, 8, "autumn"),)


def test_stops_are_in_the_order_of_their_frames_and_a_prompt_is_listed_once() -> None:
    made = spans({"10": "c", "9": "a", " 2 - 4 ": "b"}, "a")
    assert made.stops == (Stop(0, 0, "a"), Stop(2, 4, "b"), Stop(9, 9, "a"), Stop(10, 10, "c"))
    assert made.texts == ("a", "b", "c")


def test_a_prompt_is_constant_in_its_span_and_turns_into_the_next_on_a_straight_line() -> None:
    made = spans({"0-3": "a", "7-8": "b"})
    assert [made.mix(frame) for frame in (0, 3)] == [("a", "a", 0.0)] * 2
    assert [made.mix(frame) for frame in (4, 5, 6)] == [("a", "b", 0.25), ("a", "b", 0.5), ("a", "b", 0.75)]
    assert [made.mix(frame) for frame in (7, 8, 9, 400)] == [("b", "b", 0.0)] * 4


def test_before_the_first_stop_its_prompt_is_shown_already() -> None:
    assert spans({5: "b", 9: "c"}).mix(2) == ("b", "b", 0.0)


def test_where_prompts_do_not_blend_each_holds_until_the_next_begins() -> None:
    made = spans({"0-3": "a", "7-8": "b"})
    assert "".join(made.at(frame) for frame in range(10)) == "aaaaaaabbb"
    assert spans({5: "b", 9: "c"}).at(2) == "b"


@given(st.dictionaries(st.integers(0, 60), st.text("xyz", min_size=1, max_size=3), min_size=1, max_size=8))
def test_single_frames_mix_as_lines_between_neighbouring_stops(told: dict[int, str]) -> None:
    """The formula of prompt travel, written out: the neighbours of a frame, and how far it is from the one before."""
    stops = {0: "start", **told}
    made = spans(told, "start")
    frames = sorted(stops)
    for before, after in [*pairwise(frames), (frames[-1], None)]:
        assert made.mix(before)[::2] == (stops[before], 0.0)
        for frame in range(before + 1, after or before + 5):
            share = 0.0 if after is None else (frame - before) / (after - before)
            assert made.mix(frame) == (stops[before], stops[before if after is None else after], share)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"autumn": "x"}, "at 'autumn'; expected a frame such as 8, or frames such as 8-15, from 0 to 4095"),
        ({"8-": "x"}, "at '8-'; expected a frame"),
        ({-1: "x"}, "at '-1'; expected a frame"),
        ({"4096": "x"}, "at '4096'; expected a frame"),
        ({"9" * 5000: "x"}, "expected a frame"),
        ({"\u0665": "x"}, "expected a frame"),
        ({"15-8": "x"}, "at 15-8, which ends before it starts"),
        ({"8-15": "x", "15": "y"}, "two prompts for frame 15: those at 8-15 and at 15"),
        ({"8": "x", "08": "y"}, "two prompts for frame 8: those at 8 and at 8"),
        ({"8-15": "  "}, "an empty prompt at 8-15; say what to show"),
        ({frame: "x" for frame in range(MOST + 1)}, "has 257 prompts; expected at most 256"),
    ],
)
def test_spans_that_cannot_be_meant_are_refused_in_one_sentence(told: dict, says: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(says)) as caught:
        spans(told)
    assert len(str(caught.value)) < 200


def test_frames_beyond_the_clip_are_refused_where_its_length_is_known() -> None:
    asked = Request(prompt_spans={"8-15": "x"})
    check(asked.with_(frames=16))
    check(asked)
    with pytest.raises(BadRequest, match="prompt_spans names frame 15; this clip has frames 0 to 14"):
        check(asked.with_(frames=15))
    assert spans_of(asked.with_(frames=4)) is not None  # a block of it
