"""Open-Sora's rule that sorts clips into buckets, of 1.1 to 1.3 and of 2.0 (opensora/datasets/bucket.py).

A clip is tried at resolutions and lengths from large to small. A resolution takes clips of at least 0.8 of its area, at
the longest of its lengths that the clip fills. There the clip is kept with the probability of the row, and otherwise
tried at the next smaller resolution. Single frames go to rows of one frame. The ratio is the nearest.

Differences of the versions, at c37e6d6 (1.1), bde3c42 (1.2), 2ca632a (1.3) and 7ad6a96 (2.0):

- ``frames > length · interval`` fills a length in 1.x, so a clip needs one frame more than it gives;
  ``frames // interval >= length`` in 2.0.
- The second probability of a pair is that of staying at this length in 1.2, and of leaving it for the next in 2.0.
- 1.x draws from a generator for each clip, resolution and length; 2.0 from one for each clip.
- 1.1 has no pairs. 1.3 is 1.2's rule; its other class (``Bucket_ar_first``) is not supported.
- 2.0 takes every ceil(fps / 16)-th frame of a clip; here clips have the frames that the source of training clips gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from kinema.data.buckets.config import Buckets, Row

AREA = 0.8
"""Share of a resolution's area that a clip must have."""


class ClipSize(NamedTuple):
    """The frames, height and width of a clip as filmed."""

    frames: int
    height: int
    width: int


class Bucket(NamedTuple):
    """A resolution, a number of frames and a ratio, by name."""

    resolution: str
    frames: int
    ratio: str

    def __str__(self) -> str:
        return f"{self.resolution} {self.ratio} × {self.frames}"


class Place(NamedTuple):
    """A row that a clip may go to, and the row's place among all."""

    resolution: str
    frames: int
    row: Row
    number: int


def places(buckets: Buckets, clip: ClipSize, interval: int = 1) -> Iterator[list[Place]]:
    """Yield, for each resolution that the clip is large enough for, the rows that it fills, longest first."""
    number = 0
    for name, rows in buckets.rows.items():
        first, number = number, number + len(rows)
        if clip.height * clip.width < AREA * buckets.resolutions[name].area:
            continue
        numbered = [Place(name, frames, row, first + i) for i, (frames, row) in enumerate(rows.items())]
        yield [place for place in numbered if _fills(buckets.rule, clip.frames, place.frames, interval)]


def _fills(rule: str, frames: int, length: int, interval: int) -> bool:
    taken = frames if rule == "1.2" else max(frames // interval, 1)
    if 1 in (taken, length):
        return taken == length
    return taken > length * interval if rule == "1.2" else taken >= length


def choose(buckets: Buckets, clip: ClipSize, seed: int, interval: int = 1) -> Bucket | None:
    """The bucket of a clip, with draws from ``seed``; None if it fits none, or is kept in none this time.

    ``interval``: every n-th frame of the clip is used.
    """
    draw = _FirstLine(seed) if buckets.rule == "1.2" else _SecondLine(seed)
    for each in places(buckets, clip, interval):
        for place in each:
            if place.row.pair is not None and not draw.stays(place):
                continue
            if draw.keeps(place):
                ratio = buckets.resolutions[place.resolution].nearest(clip.height, clip.width)
                return Bucket(place.resolution, place.frames, ratio)
            break
    return None


def chances(buckets: Buckets, clip: ClipSize, interval: int = 1) -> dict[tuple[str, int], float]:
    """The probability of each (resolution, frames) that `choose` may return for a clip; those at 0 are left out."""
    found, left = {}, 1.0
    for each in places(buckets, clip, interval):
        passed = 0.0
        for place in each:
            second, keep = place.row.pair, place.row.keep
            stays = 1.0 if second is None else second if buckets.rule == "1.2" else 1 - second
            found[place.resolution, place.frames] = left * stays * keep
            passed += left * stays * (1 - keep)
            left *= 1 - stays
        left += passed
    return {key: chance for key, chance in found.items() if chance > 0}


class _FirstLine:
    """Draws of 1.x: one generator for each clip and row."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.generators: dict[int, np.random.Generator] = {}

    def _random(self, place: Place) -> float:
        if place.number not in self.generators:
            self.generators[place.number] = np.random.default_rng(self.seed + place.number)
        return float(self.generators[place.number].random())

    def stays(self, place: Place) -> bool:
        return self._random(place) <= (place.row.pair or 0.0)

    def keeps(self, place: Place) -> bool:
        return place.row.keep >= 1 or self._random(place) < place.row.keep


class _SecondLine:
    """Draws of 2.0: one generator for each clip."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def stays(self, place: Place) -> bool:
        skip = place.row.pair or 0.0
        return not (skip >= 1 or self.generator.random() <= skip)

    def keeps(self, place: Place) -> bool:
        if place.frames == 1:
            return float(self.generator.random()) < place.row.keep
        return place.row.keep >= 1 or float(self.generator.random()) <= place.row.keep
