"""The published frame sizes of Open-Sora 2.0, in sampling and in training, from runs of its own code at 7ad6a96."""

from __future__ import annotations

import pytest

from kinema.families.opensora.sizes import RATIOS, WIDE, pixels, size, sizes
from kinema.schema import BadRequest

SAMPLING = {
    ("256px", 16): [
        *((160, 384), (176, 352), (192, 336), (192, 336), (336, 192), (336, 192)),
        *((208, 304), (224, 288), (256, 256)),
    ],
    ("768px", 16): [
        *((496, 1184), (544, 1072), (576, 1024), (560, 1040), (1024, 576), (992, 592)),
        *((624, 928), (656, 880), (768, 768)),
    ],
    ("768px", 32): [
        *((480, 1184), (544, 1056), (576, 1024), (576, 1024), (1024, 576), (1024, 576)),
        *((608, 928), (672, 864), (768, 768)),
    ],
}
"""Height and width by resolution and multiple, for each of `WIDE`."""


@pytest.mark.parametrize(("resolution", "multiple"), SAMPLING)
def test_the_sizes_of_sampling(resolution: str, multiple: int) -> None:
    told = [size(resolution, ratio, multiple) for ratio in WIDE]
    assert told == SAMPLING[resolution, multiple]
    turned = [size(resolution, ":".join(reversed(ratio.split(":"))), multiple) for ratio in WIDE[:5]]
    assert turned == [(width, height) for height, width in SAMPLING[resolution, multiple][:5]]


@pytest.mark.parametrize(
    ("ratio", "trained"), [("2.39:1", (160, 400)), ("2:1", (176, 368)), ("3:2", (208, 320)), ("1:1", (256, 256))]
)
def test_training_has_the_nearest_number_of_pixels(ratio: str, trained: tuple[int, int]) -> None:
    assert size("256px", ratio, training=True) == trained


def test_training_has_no_size_twice_and_sampling_every_ratio() -> None:
    table = sizes(pixels("256px"), training=True)
    wide = [table[ratio] for ratio in WIDE if ratio in table]
    assert len(set(wide)) == len(wide)
    assert len(table) < len(RATIOS) == len(sizes(pixels("256px"))) == 15
    with pytest.raises(BadRequest, match="training has no 1.85:1 at 256px"):
        size("256px", "1.85:1", training=True)


def test_resolutions_by_sides_and_by_rows() -> None:
    assert pixels("256px") == 65_536
    assert pixels("720p") == 921_600
    assert size("720p", "16:9") == (720, 1280)


@pytest.mark.parametrize(
    ("resolution", "ratio", "said"),
    [
        ("256", "1:1", "resolution is '256'; expected a number of pixels such as 256px"),
        ("9px", "1:1", "resolution is '9px'"),
        ("256px", "7:5", "aspect ratio is '7:5'; expected one of 2.39:1, 2:1"),
        ("16px", "2.39:1", "frames of 256 pixels are too small for 9:16; sides are multiples of 16"),
    ],
)
def test_sizes_that_are_not_there(resolution: str, ratio: str, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        size(resolution, ratio)
