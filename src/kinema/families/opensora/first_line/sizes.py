"""Frame sizes and numbers of frames of Open-Sora 1.1 to 1.3, by name. Ratios are height:width; in 2.0 width:height.

A resolution names an area. 144p to 4k come with seventeen ratios, 256 to 2880 with PixArt's forty, whose names are
decimals: of these 1.2 finds only those it spells as the ratios (12:25 is 0.48), and 1.3 those of two decimals, any by
its own name, and each size with ``_16d``, cut to multiples of 16. Original: opensora/datasets/aspect.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

from kinema.grid import Resolution
from kinema.schema import BadRequest
from kinema.values import quoted

Size = tuple[int, int]
"""(height, width) in pixels."""

RATIOS = {
    "3:8": "0.38",
    "9:21": "0.43",
    "12:25": "0.48",
    "1:2": "0.50",
    "9:17": "0.53",
    "27:50": "0.54",
    "9:16": "0.56",
    "5:8": "0.62",
    "2:3": "0.67",
    "3:4": "0.75",
    "1:1": "1.00",
    "4:3": "1.33",
    "3:2": "1.50",
    "16:9": "1.78",
    "17:9": "1.89",
    "2:1": "2.00",
    "50:27": "2.08",
}
"""Height:width and the name of its decimal."""
UNLIKE = {"27:50": 1 / 1.85, "50:27": 1 / 0.48}
"""Ratios whose sizes are not of the ratio they are named."""
AREAS = {
    "144p": 36864,
    "240p": 102240,
    "360p": 230400,
    "480p": 409920,
    "720p": 921600,
    "1080p": 2073600,
    "2k": 3686400,
    "4k": 8294400,
}
ODD = {("240p", "0.67"): (262, 393), ("480p", "0.48"): (444, 925), ("480p", "1.33"): (740, 555)}
"""Published sizes that no rule gives."""
SQUARES = {"256": 256, "512": 512, "1024": 1024, "2048": 2048}
PIXART = (
    "0.25 8x32, 0.26 8x31, 0.27 8x30, 0.28 8x29, 0.32 9x28, 0.33 9x27, 0.35 9x26, 0.4 10x25, 0.42 10x24, 0.48 11x23, "
    "0.5 11x22, 0.52 11x21, 0.57 12x21, 0.6 12x20, 0.68 13x19, 0.72 13x18, 0.78 14x18, 0.82 14x17, 0.88 15x17, "
    "0.94 15x16, 1.0 16x16, 1.07 16x15, 1.13 17x15, 1.21 17x14, 1.29 18x14, 1.38 18x13, 1.46 19x13, 1.67 20x12, "
    "1.75 21x12, 2.0 22x11, 2.09 23x11, 2.4 24x10, 2.5 25x10, 2.89 26x9, 3.0 27x9, 3.11 28x9, 3.62 29x8, 3.75 30x8, "
    "3.88 31x8, 4.0 32x8"
)
"""PixArt's sizes in sixteenths of the square's side, height x width."""
PIXART_2880 = (
    "0.25 22x90, 0.26 22x87, 0.27 22x84, 0.28 22x81, 0.32 25x78, 0.33 25x75, 0.34 25x73, 0.4 28x70, 0.42 28x67, "
    "0.47 30x64, 0.49 30x61, 0.51 30x59, 0.55 33x60, 0.59 33x56, 0.68 36x53, 0.72 36x50, 0.78 39x50, 0.83 39x47, "
    "0.89 42x47, 0.93 42x45, 1.0 45x45, 1.07 45x42, 1.12 47x42, 1.21 47x39, 1.28 50x39, 1.39 50x36, 1.47 53x36, "
    "1.7 56x33, 1.82 60x33, 2.03 61x30, 2.13 64x30, 2.39 67x28, 2.5 70x28, 2.92 73x25, 3.0 75x25, 3.12 78x25, "
    "3.68 81x22, 3.82 84x22, 3.95 87x22, 4.0 90x22"
)
"""2880's, in units of 64 pixels."""
FRAMES = {
    "1x": 51,
    "2x": 102,
    "4x": 204,
    "8x": 408,
    "16x": 816,
    "2s": 51,
    "4s": 102,
    "8s": 204,
    "16s": 408,
    "32s": 816,
}
"""Numbers of frames by name; seconds are of 25.5 frames. 1.3 kept them, though its VAE has 16k + 1."""


@cache
def named(version: str = "1.2") -> Mapping[str, Size]:
    """(height, width) by names such as ``720p:9:16``, and in 1.3 also ``720p:0.56`` and ``720p_16d:9:16``."""
    exact = _exact(version)
    if version != "1.3":
        return _by_ratio(exact)
    return _by_ratio(_in_sixteens(exact), keys=True) | _by_ratio(exact, keys=True)


def trained(name: str, version: str = "1.2") -> Resolution:
    """The resolution of a bucket's name, with all its ratios: 144p to 4k, 256 to 2880, in 1.3 also ``720p_16d``."""
    exact = _exact(version)
    tables = {**exact, **(_in_sixteens(exact) if version == "1.3" else {})}
    if name not in tables:
        raise BadRequest(f"the resolution is {quoted(name)}; expected one of {', '.join(tables)}")
    plain = name.removesuffix("_16d")
    area = AREAS.get(plain) or SQUARES.get(plain, 0) ** 2 or AREAS["4k"]  # 2880 is of 4k's area
    return Resolution(area, tables[name], {key: float(key) for key in tables[name]})


@cache
def _exact(version: str) -> Mapping[str, Mapping[str, Size]]:
    """(height, width) by resolution, then by decimal."""
    return {**{name: _sizes(name) for name in AREAS}, **{name: _pixart(name, version) for name in (*SQUARES, "2880")}}


def _in_sixteens(exact: Mapping[str, Mapping[str, Size]]) -> dict[str, Mapping[str, Size]]:
    """1.3's sizes that are cut to multiples of 16."""
    return {
        f"{name}_16d": {key: (h // 16 * 16, w // 16 * 16) for key, (h, w) in table.items()}
        for name, table in exact.items()
    }


def _by_ratio(tables: Mapping[str, Mapping[str, Size]], *, keys: bool = False) -> dict[str, Size]:
    found: dict[str, Size] = {}
    for resolution, table in tables.items():
        found |= {f"{resolution}:{ratio}": table[key] for ratio, key in RATIOS.items() if key in table}
        if keys:
            found |= {f"{resolution}:{key}": size for key, size in table.items()}
    return found


def _sizes(resolution: str) -> dict[str, Size]:
    """Of the area, rounded up to even sides from odd ones; 144p's are rounded down to any."""
    area, found = AREAS[resolution], {}
    for ratio, key in RATIOS.items():
        up, across = map(int, ratio.split(":"))
        each = UNLIKE.get(ratio, up / across)
        side = math.sqrt(area * each)
        if resolution == "144p":
            found[key] = math.floor(side), math.floor(math.floor(side) / each)
        else:
            height = _even(side)
            found[key] = ODD.get((resolution, key), (height, _even(height / each)))
    return found


def _even(side: float) -> int:
    """The side rounded up where that is even, and down elsewhere."""
    up = math.ceil(side + 1e-4)
    return up if up % 2 == 0 else math.floor(side + 1e-4)


def _pixart(resolution: str, version: str) -> dict[str, Size]:
    """1.2 names ratios as short as they are (``1.0``), 1.3 with two decimals."""
    table, unit = (PIXART_2880, 64) if resolution == "2880" else (PIXART, SQUARES[resolution] // 16)
    found = {}
    for entry in table.split(", "):
        key, sides = entry.split()
        height, width = map(int, sides.split("x"))
        found[f"{float(key):.2f}" if version == "1.3" else key] = height * unit, width * unit
    return found


def nearest(height: int, width: int, version: str = "1.2") -> tuple[str, Size]:
    """The nearest size of 144p to 4k and its name: first the resolution, by its area, then the ratio."""
    known = {name: size for name, size in named(version).items() if name.partition(":")[2] in RATIOS}

    def distance(name: str) -> tuple[float, float]:
        up, across = known[name]
        return abs(math.log(AREAS[name.partition(":")[0]] / (height * width))), abs(up / across - height / width)

    name = min((name for name in known if name.partition(":")[0] in AREAS), key=distance)
    return name, known[name]


def snapped(height: int, width: int, version: str = "1.2") -> tuple[Size, str]:
    """The published size nearest to one that is asked for, and a sentence that says so; "" if it is one itself."""
    if (height, width) in named(version).values():
        return (height, width), ""
    name, (up, across) = nearest(height, width, version)
    return (up, across), f"this model was not trained at {height}×{width}; the nearest size, {name}, is {up}×{across}"


def frames_of(name: str | int) -> int:
    """The number of frames of a name such as ``4s`` or ``2x``, or of a number."""
    if name in FRAMES:
        return FRAMES[str(name)]
    try:
        count = int(name)
    except ValueError:
        raise BadRequest(
            f"the number of frames is {quoted(name)}; expected a number or one of {', '.join(FRAMES)}"
        ) from None
    if count < 1:
        raise BadRequest(f"the number of frames is {count}; expected at least 1")
    return count
