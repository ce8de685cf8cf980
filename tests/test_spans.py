"""Prompt spans: parsing, interpolation and validation."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from kinema.schema import BadRequest, Request
from kinema.spans import MOST, Spans, Stop, check, spans_of


def spans(given: dict, prompt: str = "") -> Spans:
    found = spans_of(Request(prompt=prompt, prompt_spans=given))
    assert found is not None
    return found


def test_a_request_with_one_prompt_has_no_spans() -> None:
    assert spans_of(Request(prompt="spring")) is None


def test_the_prompt_applies_at_frame_0_unless_a_span_covers_it_or_it_is_empty() -> None:
    assert spans({8: "autumn"}, "spring").stops == (Stop(0, 0, "spring"), Stop(8, 8, "autumn"))
    assert spans({"0-3": "summer", 8: "autumn"}, "spring").texts == ("summer", "autumn")
    assert spans({8: "autumn"}, "  ").stops == (Stop(8, 8, "autumn"),)


def test_stops_are_sorted_by_frame_and_each_prompt_is_listed_once() -> None:
    parsed = spans({"10": "c", "9": "a", " 2 - 4 ": "b"}, "a")
    assert parsed.stops == (Stop(0, 0, "a"), Stop(2, 4, "b"), Stop(9, 9, "a"), Stop(10, 10, "c"))
    assert parsed.texts == ("a", "b", "c")


def test_a_prompt_is_constant_in_its_span_and_interpolated_linearly_between_spans() -> None:
    parsed = spans({"0-3": "a", "7-8": "b"})
    assert [parsed.mix(frame) for frame in (0, 3)] == [("a", "a", 0.0)] * 2
    assert [parsed.mix(frame) for frame in (4, 5, 6)] == [("a", "b", 0.25), ("a", "b", 0.5), ("a", "b", 0.75)]
    assert [parsed.mix(frame) for frame in (7, 8, 9, 400)] == [("b", "b", 0.0)] * 4


def test_the_first_prompt_also_applies_before_its_stop() -> None:
    assert spans({5: "b", 9: "c"}).mix(2) == ("b", "b", 0.0)


def test_without_blending_each_prompt_holds_until_the_next_starts() -> None:
    parsed = spans({"0-3": "a", "7-8": "b"})
    assert "".join(parsed.at(frame) for frame in range(10)) == "aaaaaaabbb"
    assert spans({5: "b", 9: "c"}).at(2) == "b"


@hypothesis_given(st.dictionaries(st.integers(0, 60), st.text("xyz", min_size=1, max_size=3), min_size=1, max_size=8))
def test_single_frames_are_interpolated_between_neighbouring_stops(given: dict[int, str]) -> None:
    """The formula of prompt travel, written out: a frame's neighbouring stops and its distance from the first."""
    stops = {0: "start", **given}
    parsed = spans(given, "start")
    frames = sorted(stops)
    for before, after in [*pairwise(frames), (frames[-1], None)]:
        assert parsed.mix(before)[::2] == (stops[before], 0.0)
        for frame in range(before + 1, after or before + 5):
            share = 0.0 if after is None else (frame - before) / (after - before)
            assert parsed.mix(frame) == (stops[before], stops[before if after is None else after], share)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"autumn": "x"}, "at 'autumn'; expected a frame such as 8, or frames such as 8-15, from 0 to 4095"),
        ({"8-": "x"}, "at '8-'; expected a frame"),
        ({-1: "x"}, "at '-1'; expected a frame"),
        ({"4096": "x"}, "at '4096'; expected a frame"),
        ({"9" * 5000: "x"}, "expected a frame"),
        ({"\u0665": "x"}, "expected a frame"),
        ({"15-8": "x"}, "prompt span 15-8 ends before it starts; expected 8-15"),
        ({"8-15": "x", "15": "y"}, "frame 15 has two prompts: those at 8-15 and 15"),
        ({"8": "x", "08": "y"}, "frame 8 has two prompts: those at 8 and 8"),
        ({"8-15": "  "}, "the prompt at 8-15 is empty; expected text that describes the clip"),
        ({frame: "x" for frame in range(MOST + 1)}, "there are 257 prompt spans; expected at most 256"),
    ],
)
def test_invalid_spans_are_refused_in_one_sentence(given: dict, message: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(message)) as caught:
        spans(given)
    assert len(str(caught.value)) < 200


def test_frames_beyond_a_clip_of_known_length_are_refused() -> None:
    request = Request(prompt_spans={"8-15": "x"})
    check(request.with_(frames=16))
    check(request)
    with pytest.raises(BadRequest, match="there is a prompt at frame 15; this clip has frames 0 to 14"):
        check(request.with_(frames=15))
    assert spans_of(request.with_(frames=4)) is not None  # a block of the clip
