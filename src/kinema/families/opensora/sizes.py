"""Frame sizes of Open-Sora 2.0, in training and sampling, by number of pixels and aspect ratio (width:height)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from kinema.schema import MAX_SIDE, BadRequest

WIDE = ("2.39:1", "2:1", "16:9", "1.85:1", "9:16", "5:8", "3:2", "4:3", "1:1")
"""The published list; its turned ratios are the upright sizes."""
RATIOS = tuple(dict.fromkeys([*WIDE, *(":".join(reversed(ratio.split(":"))) for ratio in WIDE)]))
_NAME = re.compile(r"(\d{2,5})(px|p)")


def pixels(resolution: str) -> int:
    """Pixels of a frame at this resolution: ``256px`` is 256², ``720p`` is 720² · 16/9. Raises BadRequest."""
    match = _NAME.fullmatch(resolution)
    if match is None or not 16 <= int(match[1]) <= MAX_SIDE:
        raise BadRequest(f"resolution is {resolution!r}; expected a number of pixels such as 256px, 768px or 720p")
    side = int(match[1])
    return side * side if match[2] == "px" else int(side * side / 9 * 16)


def size(resolution: str, ratio: str, multiple: int = 16, *, training: bool = False) -> tuple[int, int]:
    """(height, width) of frames, both multiples of ``multiple`` (16; 32 for the Video DC-AE).

    ``training`` takes the sizes of the training buckets, which are nearer to the nominal number of pixels; the images
    of t2i2v use them too. Raises BadRequest for a ratio that is not in `RATIOS`.
    """
    table = sizes(pixels(resolution), multiple, training=training)
    if ratio not in table:
        near = f"; training has no {ratio} at {resolution}" if ratio in RATIOS else ""
        raise BadRequest(f"aspect ratio is {ratio!r}; expected one of {', '.join(table)}{near}")
    return table[ratio]


RESOLUTIONS = ("256px", "768px")
"""Those of the published models."""


def named(multiple: int = 16) -> Mapping[str, tuple[int, int]]:
    """(height, width) by names such as ``768px:16:9``; sides are multiples of ``multiple``, and of 16 as published."""
    multiple = math.lcm(multiple, 16)
    return {
        f"{resolution}:{ratio}": size
        for resolution in RESOLUTIONS
        for ratio, size in sizes(pixels(resolution), multiple).items()
    }


def sizes(total: int, multiple: int = 16, *, training: bool = False) -> Mapping[str, tuple[int, int]]:
    """(height, width) for each ratio, of about ``total`` pixels."""
    found: dict[str, tuple[int, int]] = {}
    for ratio in WIDE:
        across, up = map(float, ratio.split(":"))
        width = int(math.sqrt(total * (across / up)) // multiple) * multiple
        height = int(total / width // multiple) * multiple if width else 0
        if not (width and height):
            raise BadRequest(f"frames of {total} pixels are too small for {ratio}; sides are multiples of {multiple}")
        if training:
            height, width = _nearest(total, height, width, multiple)
        if not training or (height, width) not in found.values():
            found[ratio] = (height, width)
    turned = {":".join(reversed(ratio.split(":"))): (w, h) for ratio, (h, w) in found.items()}
    return {**found, **turned}


def _nearest(total: int, height: int, width: int, multiple: int) -> tuple[int, int]:
    """The nearest to ``total`` pixels of this size and its four neighbours, the first of equals."""
    steps = ((0, 0), (-multiple, 0), (multiple, 0), (0, -multiple), (0, multiple))
    return min(((height + up, width + across) for up, across in steps), key=lambda size: abs(size[0] * size[1] - total))
