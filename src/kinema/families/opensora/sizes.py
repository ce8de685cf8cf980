"""Frame sizes of Open-Sora 2.0, by number of pixels and aspect ratio (width:height): of sampling and of training."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from kinema.grid import Resolution
from kinema.schema import MAX_SIDE, BadRequest
from kinema.values import quoted

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


def trained(name: str, multiple: int = 16) -> Resolution:
    """The resolution of a bucket's name; original: opensora/datasets/aspect.py.

    ``256px`` has 256² pixels, ``360p`` 360² · 16 / 9. ``256px_ar16:9`` has one ratio, ``256px_max`` the one with the
    most pixels. Training's sizes are those of sampling, moved by one step where that is nearer to the number of pixels;
    a ratio whose size another has already is left out. Sides are multiples as in `named`.
    """
    match = _RESOLUTION.fullmatch(name)
    if match is None or not 1 <= int(match["side"]) <= MAX_SIDE:
        raise BadRequest(
            f"the resolution is {quoted(name)}; expected a name of Open-Sora 2.0, such as 256px, 360p, 256px_ar16:9 or "
            "256px_max"
        )
    side = int(match["side"])
    total = side * side if match["unit"] == "px" else int(side * side / 9 * 16)
    known = _sizes(total, math.lcm(multiple, 16), training=True)
    if match["one"] == "max":
        chosen = [max(known, key=lambda ratio: math.prod(known[ratio]))]
    elif match["ratio"]:
        chosen = [ratio for ratio in known if ratio == match["ratio"]]
    else:
        chosen = [*known]
    if not chosen:
        raise BadRequest(f"{name} is not a resolution: expected the ratio to be one of {', '.join(known)}")
    ratios = {ratio: float(ratio.split(":")[1]) / float(ratio.split(":")[0]) for ratio in chosen}
    return Resolution(total, {ratio: known[ratio] for ratio in chosen}, ratios)


_RESOLUTION = re.compile(
    r"(?P<side>\d{1,5})(?P<unit>px|p)(_(?P<one>max|ar(?P<ratio>[\d.]{1,8}:[\d.]{1,8})))?", re.ASCII
)


def _sizes(total: int, multiple: int, *, training: bool = False) -> Mapping[str, tuple[int, int]]:
    """(height, width) for each ratio, of about ``total`` pixels."""
    found: dict[str, tuple[int, int]] = {}
    for ratio in WIDE:
        across, up = map(float, ratio.split(":"))
        width = int(math.sqrt(total * (across / up)) // multiple) * multiple
        height = int(total / width // multiple) * multiple if width else 0
        if not (width and height):
            raise BadRequest(f"frames of {total} pixels are too small for {ratio}; sides are multiples of {multiple}")
        size = _moved(height, width, total, multiple) if training else (height, width)
        if not training or size not in found.values():
            found[ratio] = size
    turned = {":".join(reversed(ratio.split(":"))): (w, h) for ratio, (h, w) in found.items()}
    return {**found, **turned}


def _moved(height: int, width: int, total: int, multiple: int) -> tuple[int, int]:
    """The size, or the nearest to ``total`` pixels of those that have one side a step shorter or longer."""
    steps = ((-multiple, 0), (multiple, 0), (0, -multiple), (0, multiple))
    near = [(height, width), *((height + up, width + across) for up, across in steps)]
    return min(near, key=lambda size: abs(size[0] * size[1] - total))
