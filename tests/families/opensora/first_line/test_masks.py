"""Mask strategies against the original functions.

Reference: `apply_mask_strategy` of hpcaitech/Open-Sora 1.1 (c37e6d6, scripts/inference-long.py) and 1.2 (bde3c42), on
twelve worked examples and on 400 random strategies (tools/record_opensora_samplers.py). Frames and mask values are
equal; what raised an error there is refused.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from kinema.families.opensora.first_line.masks import (
    V1_1,
    V1_2,
    V1_2_ALIGNED,
    Cell,
    Group,
    Rules,
    applied,
    mask_values,
    parse,
    written,
)
from kinema.schema import BadRequest

FRAMES = 15
RULES = {"1.2": V1_2, "1.2-aligned": V1_2_ALIGNED, "1.1": V1_1}


def run(target: int, source: int, length: int, mask: float = 0.0, reference: int = 0) -> dict[int, Cell]:
    return {target + i: Cell(reference, source + i, mask) for i in range(length)}


EXAMPLES: list[tuple[str, tuple[int, ...], int, dict[int, Cell], dict[int, Cell] | None, dict[int, Cell] | None]] = [
    ("", (), 0, {}, None, None),
    ("0", (1,), 0, run(0, 0, 1), None, None),
    ("0,0,0,-8,8", (30,), 0, run(7, 0, 8), run(5, 0, 8), None),
    ("0,0,-5,0,5", (30,), 0, run(0, 25, 5), None, None),
    ("0;0,1,0,-1,1", (1, 1), 0, run(0, 0, 1) | run(14, 0, 1, 0, 1), run(0, 0, 1) | run(10, 0, 1, 0, 1), None),
    ("0;0,1,0,-5,5", (1, 15), 0, run(0, 0, 1) | run(10, 0, 5, 0, 1), None, None),
    ("0,0,0,0,15,0.4", (30,), 0, run(0, 0, 15, 0.4), None, None),
    ("0,0,3,7,4", (15,), 0, run(7, 3, 4), run(5, 5, 4), None),
    ("0,0,0,13,5", (15,), 0, run(13, 0, 2), run(10, 0, 5), {-1: Cell(0, 0, 0)}),
    ("1,0,-5,0,5,0", (15,), 1, run(0, 10, 5), None, None),
    (
        "0,0,0,0,5;0,0,5,3,4,0.3",
        (15,),
        0,
        run(0, 0, 3) | run(3, 5, 4, 0.3),
        run(0, 0, 5) | run(5, 5, 4, 0.3),
        None,
    ),
    ("0,0,-8,0,8", (5,), 0, {-1: Cell(0, 0, 0)}, None, None),
]
"""Strategy, frames of its references, loop, what 1.2 fills; what it fills with align 5 and what 1.1 does, where that
differs. {-1: …} stands for a refusal."""


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda each: each[0] or "none")
def test_the_worked_examples_frame_by_frame(example: Any, rules: str) -> None:
    strategy, references, loop, plain, aligned, older = example
    expected = {"1.2": plain, "1.2-aligned": aligned, "1.1": older}[rules] or plain
    if -1 in expected:
        with pytest.raises(BadRequest, match=r"group 1 \("):
            applied(parse(strategy), loop, FRAMES, references, RULES[rules])
        return
    found = applied(parse(strategy), loop, FRAMES, references, RULES[rules])
    assert found == tuple(expected.get(frame) for frame in range(FRAMES))
    assert mask_values(found) == [expected[frame].mask if frame in expected else 1.0 for frame in range(FRAMES)]


def test_a_group_of_another_loop_does_nothing() -> None:
    assert applied(parse("1,0,-5,0,5,0"), 0, FRAMES, (15,), V1_2) == (None,) * FRAMES
    assert applied(parse("0"), 1, FRAMES, (15,), V1_2) == (None,) * FRAMES


def test_a_negative_reference_counts_from_the_last() -> None:
    assert applied(parse("0,-1"), 0, 2, (1, 1, 1), V1_2) == (Cell(2, 0, 0.0), None)
    with pytest.raises(BadRequest, match="is for reference -4; the prompt has 3 references"):
        applied(parse("0,-4"), 0, 2, (1, 1, 1), V1_2)


# What the original accepts by accident, with Python's own meaning of slices, and we refuse: starts before a beginning,
# and starts at or past an end, which place nothing or something else than they say.
ACCIDENTS = re.compile("starts at (latent )?frame")


def outcome(strategy: str, rules: Rules) -> tuple[Cell | None, ...] | str:
    try:
        return applied(parse(strategy), 0, FRAMES, (1, 15, 30), rules)
    except BadRequest as error:
        return str(error)


@pytest.mark.parametrize("name", RULES)
def test_random_strategies_do_as_the_original(recorded: Any, name: str) -> None:
    tensors, told = recorded("masks")
    source, mask, failed = (tensors[f"{name}.{part}"] for part in ("source", "mask", "failed"))
    counts = {"equal": 0, "refused": 0, "accident": 0}
    for i, strategy in enumerate(told["strategies"]):
        cells = outcome(strategy, RULES[name])
        if isinstance(cells, str):
            assert failed[i] or ACCIDENTS.search(cells), strategy
            counts["refused" if failed[i] else "accident"] += 1
            continue
        assert not failed[i], strategy
        frames = [-1 if cell is None else 1000 * cell.reference + cell.frame for cell in cells]
        assert frames == source[i].tolist(), strategy
        assert mask_values(cells) == pytest.approx(mask[i].tolist()), strategy
        counts["equal"] += 1
    assert counts["equal"] > 200
    assert counts["refused"] + counts["accident"] > 20


def test_an_image_fills_every_frame_of_a_group_in_1_1_alone() -> None:
    assert applied(parse("0,0,0,2,3"), 0, 5, (1,), V1_1) == (None, None, *[Cell(0, 0, 0.0)] * 3)
    assert applied(parse("0,0,0,2,3"), 0, 5, (1,), V1_2) == (None, None, Cell(0, 0, 0.0), None, None)


def test_groups_are_typed_and_written_out() -> None:
    assert parse(None) == parse("") == ()
    assert parse("0; 1, 2,-3") == (Group(), Group(1, 2, -3))
    assert parse("1,0,-5,0,5,0.25")[0] == Group(1, 0, -5, 0, 5, 0.25)
    assert written(parse("0;0,1,0,-1")) == "0,0,0,0,1,0;0,1,0,-1,1,0"


@pytest.mark.parametrize(
    ("strategy", "sentence"),
    [
        ("0,0,0,0,1,0,0", r"group 1 \('0,0,0,0,1,0,0'\) has 7 fields; expected at most 6"),
        ("0;0,a", r"group 2 \('0,a'\) has 'a' for its reference; expected a whole number"),
        ("0,0,1.5", r"has '1.5' for its start in the reference"),
        ("0;", r"group 2 \(''\) has '' for its loop"),
        ("0,0,0,0,1,x", "has 'x' for its edit ratio; expected a number from 0 to 1"),
        ("0,0,0,0,1,2", "has an edit ratio of 2; expected 0 to 1"),
        ("0,0,0,0,1,-0.1", "has an edit ratio of -0.1; expected 0 to 1"),
        ("0,0,0,0,1,nan", "has an edit ratio of nan; expected 0 to 1"),
        ("-1", "is for loop -1; expected 0 or more"),
        ("0,0,0,0,0", "has a length of 0; expected at least 1"),
        ("0;" * 1000 + "0", "has 1,001 groups; expected at most 1,000"),
    ],
)
def test_what_is_not_a_strategy_is_refused(strategy: str, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        parse(strategy)


@pytest.mark.parametrize(
    ("strategy", "references", "rules", "sentence"),
    [
        ("0", (), V1_2, "is for reference 0; the prompt has no references"),
        (
            "0;0,1",
            (1,),
            V1_2,
            r"group 2 \(0,1,0,0,1,0\) is for reference 1; the prompt has 1 reference, counted from 0",
        ),
        (
            "0,0,5",
            (5,),
            V1_2,
            r"at latent frame 5 of its reference, which has 5 latent frames \(17 frames make 5\); expected -5 to 4",
        ),
        ("0,0,0,15", (1,), V1_2, r"latent frame 15 of the clip, which has 15 latent frames .* expected -15 to 14"),
        ("0,0,0,-16", (1,), V1_2, "starts at latent frame -16 of the clip"),
        ("0,0,0,16", (1,), V1_2_ALIGNED, "starts at latent frame 16 of the clip"),
        ("0,0,0,15", (1,), V1_1, "starts at frame 15 of the clip, which has 15 frames; expected -15 to 14"),
        ("0,0,0,13,5", (15,), V1_1, "takes 5 frames of its reference for 2 frames of the clip; expected equal numbers"),
    ],
)
def test_a_group_that_points_past_its_ends_is_refused(
    strategy: str, references: tuple[int, ...], rules: Rules, sentence: str
) -> None:
    with pytest.raises(BadRequest, match=sentence):
        applied(parse(strategy), 0, FRAMES, references, rules)


def test_alignment_may_bring_a_start_back_inside() -> None:
    """As in the original: frame -1 of a reference is moved to 0."""
    assert applied(parse("0,0,-6,0,5"), 0, FRAMES, (5,), V1_2_ALIGNED)[0] == Cell(0, 0, 0.0)
    with pytest.raises(BadRequest, match="starts at latent frame -6"):
        applied(parse("0,0,-6,0,5"), 0, FRAMES, (5,), V1_2)
