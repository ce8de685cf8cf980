"""Long clips in loops: their frames, their strategies and their prompts.

Reference: append_generated and dframe_to_frame of hpcaitech/Open-Sora 1.2 (bde3c42), the loop of scripts/inference.py;
scripts/inference-long.py of 1.1 (c37e6d6); prep_ref_and_mask of 1.3 (2ca632a); all read.
"""

from __future__ import annotations

from typing import Any

import pytest

from kinema.families.opensora.first_line.loops import Loops, given_v1_3, latents_v1_3
from kinema.families.opensora.first_line.masks import V1_1, V1_2, V1_2_ALIGNED, Cell, applied, parse, written
from kinema.families.opensora.first_line.prompt_file import per_loop
from kinema.schema import BadRequest


@pytest.mark.parametrize("rules", [V1_2, V1_2_ALIGNED])
def test_three_loops_of_1_2_with_five_latent_frames(rules: Any) -> None:
    loops = Loops("1.2", 3, 5)
    groups = loops.groups(parse("0"), references=1)
    assert written(groups) == "0,0,0,0,1,0;1,1,-5,0,5,0;2,2,-5,0,5,0"
    # The image, then the clip of each loop, of 51 pixel frames: 15 latent ones.
    assert applied(groups, 0, 15, (1,), rules) == (Cell(0, 0, 0.0), *[None] * 14)
    assert applied(groups, 1, 15, (1, 15), rules) == (*[Cell(1, 10 + i, 0.0) for i in range(5)], *[None] * 10)
    assert applied(groups, 2, 15, (1, 15, 15), rules) == (*[Cell(2, 10 + i, 0.0) for i in range(5)], *[None] * 10)
    assert loops.dropped == 17
    assert loops.kept(51) == (range(51), range(17, 51), range(17, 51))
    assert loops.total(51) == 119
    assert per_loop("|0|a car|2|a street", 3) == ("a car", "a car", "a street")


def test_three_loops_of_1_1_with_four_pixel_frames() -> None:
    loops = Loops("1.1", 3, 4)
    groups = loops.groups((), references=0)
    assert written(groups) == "1,0,-4,0,4,0;2,1,-4,0,4,0"
    assert applied(groups, 0, 16, (), V1_1) == (None,) * 16
    assert applied(groups, 2, 16, (16, 16), V1_1) == (*[Cell(1, 12 + i, 0.0) for i in range(4)], *[None] * 12)
    assert loops.kept(16) == (range(16), range(4, 16), range(4, 16))
    assert loops.total(16) == 40
    assert per_loop("|0|a|1|b", 3) == ("a", "b", "b")


def test_frames_that_a_loop_begins_with_may_be_edited_in_1_2() -> None:
    groups = Loops("1.2", 2, 10, edit=0.3).groups((), references=0)
    assert written(groups) == "1,0,-10,0,10,0.3"
    assert Loops("1.2", 2, 10).total(102) == 170
    with pytest.raises(BadRequest, match=r"condition_frame_edit is for Open-Sora 1\.2"):
        Loops("1.1", 2, 4, edit=0.3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("1.2", 2, 4), "condition_frame_length is 4 latent frames; expected a multiple of 5, .* from 17 frames"),
        (("1.1", 2, 0), "condition_frame_length is 0; expected at least 1"),
        (("1.2", 0, 5), "the number of loops is 0; expected at least 1"),
        (("1.2", 2, 5, 1.5), "condition_frame_edit is 1.5; expected 0 to 1"),
    ],
)
def test_loops_that_cannot_be_are_refused(options: Any, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        Loops(*options)


def test_a_clip_that_would_lose_every_frame_is_refused() -> None:
    assert Loops("1.2", 1, 5).total(17) == 17
    with pytest.raises(BadRequest, match="begins with 17 frames of the one before, which leaves none of its 17"):
        Loops("1.2", 2, 5).total(17)


# --------------------------------------------------------------------------------------------- 1.3


def given(*options: Any) -> dict[int, tuple[int, int]]:
    cells = given_v1_3(*options)
    return {i: cell[:2] for i, cell in enumerate(cells) if cell is not None}


def test_given_frames_of_one_clip_of_1_3() -> None:
    assert given("i2v_head", 0, 1, 8, 5, (1,)) == {0: (0, 0)}
    assert given("i2v_tail", 0, 1, 8, 5, (3,)) == {7: (0, 2)}
    assert given("i2v_loop", 0, 1, 8, 5, (3,)) == {0: (0, 0), 7: (0, 2)}
    assert given("i2v_loop", 0, 1, 8, 5, (1, 3)) == {0: (0, 0), 7: (1, 0)}
    assert given("v2v_head", 0, 1, 8, 5, (9,)) == {i: (0, i) for i in range(5)}
    assert given("v2v_head", 0, 1, 8, 5, (3,)) == {i: (0, i) for i in range(3)}


def test_given_frames_of_loops_of_1_3() -> None:
    before = {i: (1, 3 + i) for i in range(5)}
    assert given("i2v_head", 1, 2, 8, 5, (1,)) == before
    assert given("i2v_tail", 0, 2, 8, 5, (1,)) == {}
    assert given("i2v_tail", 1, 2, 8, 5, (1,)) == before
    assert given("i2v_loop", 0, 2, 8, 5, (1,)) == {0: (0, 0)}
    assert given("i2v_loop", 1, 2, 8, 5, (1,)) == {**before, 7: (0, 0)}


def test_what_1_3_cannot_be_given_is_refused() -> None:
    with pytest.raises(BadRequest, match="cond_type is 'v2v_tail'; expected one of i2v_head"):
        given("v2v_tail", 0, 1, 8, 5, (1,))
    with pytest.raises(BadRequest, match="i2v_head has no reference"):
        given("i2v_head", 0, 1, 8, 5, ())


def test_joined_latents_of_1_3() -> None:
    assert latents_v1_3(28, 1, 5) == 25
    assert latents_v1_3(28, 3, 5) == 70
