"""The order of bucket batches: Open-Sora's ``VariableVideoBatchSampler`` on one device, as a function of (seed, step).

In each pass, every clip goes to at most one bucket (`rule.choose`); the clips of a bucket are shuffled and cut into
batches, and the batches of all buckets are shuffled. The draws are the original's, so the batches are too
(opensora/datasets/sampler.py at bde3c42 and 7ad6a96, with ``drop_last=False``): a bucket's last batch is filled with
clips from its beginning. The original does so once, and so loses a bucket that has less than half a batch; here clips
repeat until the batch is full. Its training scripts drop incomplete batches instead, always the same clips; a small
folder may then have none at all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import torch

from kinema.data.buckets.config import Buckets
from kinema.data.buckets.rule import Bucket, ClipSize, chances, choose
from kinema.schema import BadRequest

MAX_EMPTY = 1000
"""Passes in a row that may keep no clip, where keep probabilities are small."""

Members = tuple[Bucket, tuple[int, ...]]
"""A batch: its bucket, and the indices of its clips."""


@dataclass(frozen=True, eq=False)
class Order:
    """Batches of clips of these sizes. ``interval``: every n-th frame of a clip is used."""

    buckets: Buckets
    clips: Sequence[ClipSize]
    seed: int = 0
    interval: int = 1
    _firsts: list[int] = field(default_factory=lambda: [0])
    """The step that each pass begins with, as far as known."""
    _last: dict[int, list[Members]] = field(default_factory=dict)
    """The batches of the last pass that was asked for."""

    @cached_property
    def chances(self) -> list[Mapping[tuple[str, int], float]]:
        """For each clip, the probability of each (resolution, frames); empty for one that fits no bucket."""
        return [chances(self.buckets, clip, self.interval) for clip in self.clips]

    @property
    def dropped(self) -> list[int]:
        """Indices of the clips that fit no bucket: too short or too small for all of them."""
        return [i for i, chance in enumerate(self.chances) if not chance]

    @property
    def empty(self) -> list[tuple[str, int]]:
        """The (resolution, frames) that no clip can be in, though they have a keep probability above 0.

        Clips are too short or too small for them, or all go to a longer or larger one.
        """
        used = set(chain.from_iterable(self.chances))
        return [
            (name, frames)
            for name, rows in self.buckets.rows.items()
            for frames, row in rows.items()
            if row.keep and (name, frames) not in used
        ]

    def assigned(self, epoch: int) -> dict[Bucket, list[int]]:
        """The clips of each bucket in a pass, in the order of the clips."""
        found: dict[Bucket, list[int]] = {}
        for i, clip in enumerate(self.clips):
            bucket = choose(self.buckets, clip, self.seed + epoch + i * self.buckets.count, self.interval)
            if bucket is not None:
                found.setdefault(bucket, []).append(i)
        return found

    def batches(self, epoch: int) -> list[Members]:
        """The batches of a pass, in order."""
        g = torch.Generator().manual_seed(self.seed + epoch)
        batches: dict[Bucket, list[Members]] = {}
        for bucket, clips in self.assigned(epoch).items():
            size = self._batch(bucket)
            whole = -(-len(clips) // size) * size
            order = torch.randperm(whole, generator=g).tolist()
            shuffled = [clips[i % len(clips)] for i in order]
            batches[bucket] = [(bucket, tuple(shuffled[i : i + size])) for i in range(0, whole, size)]
        # The order of the buckets is shuffled; the batches of each bucket stay in their own order.
        buckets = [bucket for bucket, own in batches.items() for _ in own]
        following = {bucket: iter(own) for bucket, own in batches.items()}
        return [next(following[buckets[i]]) for i in torch.randperm(len(buckets), generator=g).tolist()]

    def at(self, step: int) -> Members:
        """The batch of a step >= 0 of an endless sequence of passes. Raises BadRequest if no clip is kept."""
        epoch, place = self._position(step)
        if epoch not in self._last:
            self._last.clear()
            self._last[epoch] = self.batches(epoch)
        return self._last[epoch][place]

    def _position(self, step: int) -> tuple[int, int]:
        """The pass of a step, and its place in the pass."""
        firsts = self._firsts
        if self._constant:
            return divmod(step, self._constant)
        while firsts[-1] <= step:
            firsts.append(firsts[-1] + self._count(len(firsts) - 1))
            if len(firsts) > MAX_EMPTY and firsts[-1] == firsts[-1 - MAX_EMPTY]:
                raise BadRequest(f"the buckets kept none of {len(self.clips)} clips in {MAX_EMPTY} passes")
        epoch = bisect_right(firsts, step) - 1
        return epoch, step - firsts[epoch]

    @cached_property
    def _constant(self) -> int:
        """The batches of every pass, if all have the same clips in the same buckets; else 0."""
        certain = all(chance >= 1 for each in self.chances for chance in each.values())
        return self._count(0) if certain else 0

    def _count(self, epoch: int) -> int:
        return sum(-(-len(clips) // self._batch(bucket)) for bucket, clips in self.assigned(epoch).items())

    def _batch(self, bucket: Bucket) -> int:
        return self.buckets.rows[bucket.resolution][bucket.frames].batch
