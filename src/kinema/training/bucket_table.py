"""The table of ``kinema data buckets``: what a pass of training has of each resolution and length of a bucket file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kinema.events import OnEvent, Phase, ignore
from kinema.schema import BadRequest
from kinema.training.bucket_sources import ordered
from kinema.training.options import TrainOptions
from kinema.training.setup import prepare
from kinema.training.sources import scan


@dataclass(frozen=True)
class TableRow:
    """One resolution and length: what a pass of training has of it.

    ``expected`` is the mean number of clips over all passes; ``clips``, ``batches`` and ``sizes`` (clips by ratio and
    size) are those of the first pass. ``windows`` is how often the clips of the first pass have the length, without
    overlap.
    """

    resolution: str
    frames: int
    batch: int
    expected: float
    clips: int
    batches: int
    windows: int
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class Table:
    """The buckets of a folder, the clips in no bucket, and messages on skipped clips."""

    rows: Sequence[TableRow]
    clips: int
    dropped: Sequence[str]
    notes: Sequence[str]


def table(options: TrainOptions, on_event: OnEvent = ignore) -> Table:
    """The buckets of all clips in the options' folder, without training. Raises what `train` raises for them."""
    system, settings, buckets = prepare(options, on_event)
    if buckets is None:
        raise BadRequest("buckets is missing; expected a bucket file")
    on_event(Phase("measure", "the sizes of the clips"))
    folder, order = ordered(scan(options, system, settings, images=buckets.has_images), buckets)
    assigned, first = order.assigned(0), Counter(bucket for bucket, _ in order.batches(0))
    expected: Counter[tuple[str, int]] = Counter()
    for chance in order.chances:
        expected.update(chance)
    rows = []
    for name, lengths in buckets.rows.items():
        for frames, row in lengths.items():
            here = {bucket: clips for bucket, clips in assigned.items() if bucket[:2] == (name, frames)}
            sizes = {b.ratio: "×".join(map(str, buckets.resolutions[name].sizes[b.ratio])) for b in here}
            rows.append(
                TableRow(
                    name,
                    frames,
                    row.batch,
                    float(expected[name, frames]),
                    sum(map(len, here.values())),
                    sum(first[bucket] for bucket in here),
                    sum(order.clips[i].frames // (frames * order.interval) for clips in here.values() for i in clips),
                    {f"{bucket.ratio} {sizes[bucket.ratio]}": len(clips) for bucket, clips in here.items()},
                )
            )
    return Table(rows, len(order.clips), [folder.entries[i].name for i in order.dropped], folder.skipped)
