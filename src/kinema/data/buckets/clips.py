"""Training clips in batches of one bucket each: of a folder by `Order`, of playroom by weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch

from kinema.data.buckets.config import Buckets
from kinema.data.buckets.order import Members, Order
from kinema.data.buckets.rule import Bucket, ClipSize
from kinema.data.clip import TrainingClip
from kinema.data.folder import Folder
from kinema.schema import BadRequest

_STRIDE = 1_000_003
_MAX_TRIED = 64
"""Batches in a row that may have no usable clip."""


class Plan(Protocol):
    """The batches of a run: the bucket and the clips of a step, which depend only on the step."""

    def at(self, step: int) -> Members: ...


@dataclass(frozen=True)
class ByBucket:
    """Batches of clips of one size each.

    ``draw(bucket, member, index)`` returns a clip of the bucket's size, None if it is unusable; ``index`` differs for
    every use of a clip. ``skipped`` holds messages on skipped clips.
    """

    plan: Plan
    draw: Callable[[Bucket, int, int], TrainingClip | None]
    buckets: Buckets
    skipped: Sequence[str] = ()

    def batch(self, step: int) -> tuple[Bucket, list[TrainingClip]]:
        """The bucket and the clips of a step; an unusable clip is replaced by others of its batch.

        A batch without any usable clip is replaced by the next one. Raises BadRequest after 64 such batches.
        """
        for place in range(step, step + _MAX_TRIED):
            bucket, members = self.plan.at(place)
            drawn = [self.draw(bucket, each, place * self.buckets.largest + i) for i, each in enumerate(members)]
            usable = [clip for clip in drawn if clip is not None]
            if usable:
                return bucket, [usable[i % len(usable)] if clip is None else clip for i, clip in enumerate(drawn)]
        raise BadRequest(f"no clip of {_MAX_TRIED} batches is usable: {'; '.join(self.skipped[-3:])}")

    def clip(self, index: int) -> TrainingClip:
        """The first clip of batch ``index``."""
        return self.batch(index)[1][0]

    def drawn(self, step: int, count: int) -> tuple[str, Sequence[TrainingClip]]:  # noqa: ARG002
        bucket, clips = self.batch(step)
        return str(bucket), clips


@dataclass(frozen=True)
class Weighted:
    """Buckets drawn by weight, for clips that are rendered at any size.

    A row (resolution and frames) is drawn with a probability in proportion to its keep probability, and a ratio
    uniformly from its resolution's. Members are the numbers of the clips, each used once.
    """

    buckets: Buckets
    seed: int = 0

    @cached_property
    def _rows(self) -> list[tuple[str, int, float, int]]:
        return [
            (name, frames, row.keep, row.batch)
            for name, rows in self.buckets.rows.items()
            for frames, row in rows.items()
            if row.keep
        ]

    def at(self, step: int) -> Members:
        g = torch.Generator().manual_seed(self.seed * _STRIDE + step)
        chosen = int(torch.multinomial(torch.tensor([keep for _, _, keep, _ in self._rows]), 1, generator=g))
        name, frames, _, batch = self._rows[chosen]
        ratios = [*self.buckets.resolutions[name].sizes]
        ratio = ratios[int(torch.randint(len(ratios), (), generator=g))]
        first = step * self.buckets.largest
        return Bucket(name, frames, ratio), tuple(range(first, first + batch))


@dataclass(frozen=True)
class Sized:
    """A folder at the size of each bucket, opened once for each."""

    folder: Folder
    buckets: Buckets
    _folders: dict[Bucket, Folder] = field(default_factory=dict)

    def draw(self, bucket: Bucket, member: int, index: int) -> TrainingClip | None:
        if bucket not in self._folders:
            size = self.buckets.resolutions[bucket.resolution].sizes[bucket.ratio]
            self._folders[bucket] = self.folder.at_size(bucket.frames, *size)
        return self._folders[bucket].use(self.folder.entries[member], index)


def of_folder(folder: Folder, order: Order) -> ByBucket:
    """The clips of a folder in the order of their buckets; those that fit no bucket are reported.

    Raises BadRequest if none does.
    """
    dropped, count = order.dropped, len(order.clips)
    names = ", ".join(f"{folder.entries[i].name} ({_size(order.clips[i])})" for i in dropped[:3])
    names += ", …" if len(dropped) > 3 else ""
    if len(dropped) == count:
        raise BadRequest(f"none of {count} clips fits a bucket: they are too short or too small, such as {names}")
    if dropped:
        folder.skipped.append(f"{len(dropped)} of {count} clips are too short or too small for every bucket: {names}")
    return ByBucket(order, Sized(folder, order.buckets).draw, order.buckets, folder.skipped)


def empty_note(order: Order) -> str:
    """A sentence on the rows that no clip is in; "" if there are none."""
    rows = ", ".join(f"{name} × {frames}" for name, frames in order.empty[:6])
    more = ", …" if len(order.empty) > 6 else ""
    return f"no clip is in these buckets: {rows}{more}" if rows else ""


def _size(clip: ClipSize) -> str:
    return f"{clip.frames} frames of {clip.height}×{clip.width}"
