"""Frame sizes of Open-Sora 2.0 in sampling, by number of pixels and aspect ratio (width:height)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from kinema.schema import BadRequest

WIDE = ("2.39:1", "2:1", "16:9", "1.85:1", "9:16", "5:8", "3:2", "4:3", "1:1")
"""The published list; its turned ratios are the upright sizes."""
PIXELS = {"256px": 256**2, "768px": 768**2}
"""Pixels of a frame at the resolutions of the published models."""


def named(multiple: int = 16) -> Mapping[str, tuple[int, int]]:
    """(height, width) by names such as ``768px:16:9``; sides are multiples of ``multiple``, and of 16 as published."""
    multiple = math.lcm(multiple, 16)
    return {
        f"{resolution}:{ratio}": size
        for resolution, total in PIXELS.items()
        for ratio, size in _sizes(total, multiple).items()
    }


def _sizes(total: int, multiple: int) -> Mapping[str, tuple[int, int]]:
    """(height, width) for each ratio, of about ``total`` pixels."""
    found: dict[str, tuple[int, int]] = {}
    for ratio in WIDE:
        across, up = map(float, ratio.split(":"))
        width = int(math.sqrt(total * (across / up)) // multiple) * multiple
        height = int(total / width // multiple) * multiple if width else 0
        if not (width and height):
            raise BadRequest(f"frames of {total} pixels are too small for {ratio}; sides are multiples of {multiple}")
        found[ratio] = (height, width)
    turned = {":".join(reversed(ratio.split(":"))): (w, h) for ratio, (h, w) in found.items()}
    return {**found, **turned}
