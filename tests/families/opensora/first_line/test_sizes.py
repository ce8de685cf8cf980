"""Sizes and numbers of frames by name.

Reference: get_image_size of hpcaitech/Open-Sora 1.2 (bde3c42) and 1.3 (2ca632a), run for every resolution with every
ratio and, in 1.3, every key (tools/record_opensora_samplers.py): equal. get_num_frames, read.
"""

from __future__ import annotations

from typing import Any

import pytest

from kinema.families.opensora.first_line.sizes import FRAMES, RATIOS, frames_of, named, nearest, snapped
from kinema.schema import BadRequest


@pytest.mark.parametrize(("version", "count", "place"), [("1.2", 140, 0), ("1.3", 978, 1)])
def test_every_published_size_and_no_other(recorded: Any, version: str, count: int, place: int) -> None:
    tensors, told = recorded("sizes")
    sizes = dict(zip(told["names"][place], map(tuple, tensors[version].tolist()), strict=True))
    assert named(version) == {name: size for name, size in sizes.items() if size != (0, 0)}
    assert len(named(version)) == count


def test_ratios_are_height_to_width() -> None:
    assert named()["720p:9:16"] == (720, 1280)
    assert named()["240p:9:16"] == (240, 426)
    assert len(RATIOS) == 17


def test_1_2_finds_one_size_of_pixart_and_1_3_more() -> None:
    assert [name for name in named() if name.startswith("512:")] == ["512:12:25"]
    assert named("1.3")["512:1:1"] == named("1.3")["512_16d:1.00"] == (512, 512)
    assert named("1.3")["360p_16d:9:16"] == (352, 640)


@pytest.mark.parametrize(
    ("asked", "name", "size"),
    [
        ((480, 854), "480p:9:16", (480, 854)),
        ((500, 860), "480p:9:16", (480, 854)),
        ((1000, 1000), "720p:1:1", (960, 960)),
        ((10, 8), "144p:4:3", (221, 165)),
        ((9000, 2000), "4k:50:27", (4156, 1994)),
    ],
)
def test_another_size_goes_to_the_nearest_which_is_said(
    asked: tuple[int, int], name: str, size: tuple[int, int]
) -> None:
    assert nearest(*asked) == (name, size)
    found, said = snapped(*asked)
    assert found == size
    assert (said == "") == (asked == size)
    if said:
        assert (
            said
            == f"this model was not trained at {asked[0]}×{asked[1]}; the nearest size, {name}, is {size[0]}×{size[1]}"
        )


def test_frames_by_name() -> None:
    assert {frames_of(name) for name in ("1x", "2s")} == {51}
    assert [frames_of(f"{n}s") for n in (2, 4, 8, 16, 32)] == [51, 102, 204, 408, 816]
    assert [frames_of(f"{n}x") for n in (1, 2, 4, 8, 16)] == [51, 102, 204, 408, 816]
    assert len(FRAMES) == 10
    assert frames_of("113") == frames_of(113) == 113


@pytest.mark.parametrize("name", ["3x", "0", "-1", "4.5"])
def test_what_is_no_number_of_frames_is_refused(name: str) -> None:
    with pytest.raises(BadRequest, match="the number of frames is"):
        frames_of(name)
