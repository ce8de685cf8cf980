"""The published frame sizes of Open-Sora 2.0 in sampling, from runs of its own code at 7ad6a96."""

from __future__ import annotations

import pytest

from kinema.families.opensora.sizes import WIDE, named
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
    sizes = named(multiple)
    assert [sizes[f"{resolution}:{ratio}"] for ratio in WIDE] == SAMPLING[resolution, multiple]
    turned = [sizes[f"{resolution}:{':'.join(reversed(ratio.split(':')))}"] for ratio in WIDE[:5]]
    assert turned == [(width, height) for height, width in SAMPLING[resolution, multiple][:5]]


@pytest.mark.parametrize("multiple", [1, 8, 16])
def test_sides_are_multiples_of_16_for_smaller_ones_too(multiple: int) -> None:
    assert named(multiple) == named(16)
    assert len(named(multiple)) == 2 * 15


def test_a_multiple_larger_than_a_frame_is_refused() -> None:
    with pytest.raises(BadRequest, match="frames of 65536 pixels are too small for 2.39:1; sides are multiples of 512"):
        named(512)
