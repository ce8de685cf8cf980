"""Training and held-out clips in buckets, for ``kinema train --buckets`` and ``kinema data buckets``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kinema.data.buckets import Bucket, Buckets, ByBucket, ClipSize, Order
from kinema.data.buckets.clips import Weighted, empty_note, of_folder
from kinema.data.clip import TrainingClip
from kinema.data.folder import Folder
from kinema.data.playroom.rendered import Rendered
from kinema.events import OnEvent, Phase
from kinema.schema import BadRequest
from kinema.system import System
from kinema.training.options import TrainOptions


def read(options: TrainOptions, system: System) -> Buckets | None:
    """Read the bucket file of the options; None if there is none.

    Raises BadRequest for a file that is no bucket configuration of this model, and for batches that ``accumulate`` does
    not divide.
    """
    if options.buckets is None:
        return None
    found = Buckets.read(Path(options.buckets), system.lattice, system.name)
    found.check_parts(options.accumulate)
    return found


def rendered(clips: Rendered, buckets: Buckets) -> ByBucket:
    """Playroom's clips at the size of each bucket, which are drawn by weight."""

    def draw(bucket: Bucket, member: int, _index: int) -> TrainingClip:
        height, width = buckets.resolutions[bucket.resolution].sizes[bucket.ratio]
        return replace(clips, frames=bucket.frames, height=height, width=width).clip(member)

    return ByBucket(Weighted(buckets, clips.seed), draw, buckets)


def sorted_into(buckets: Buckets, train: Folder, held_out: Folder, on_event: OnEvent) -> tuple[ByBucket, ByBucket]:
    """The two parts of a folder in buckets; if no clip of one fits any, the other replaces it, which is reported."""
    on_event(Phase("measure", "the sizes of the clips"))
    found: list[ByBucket] = []
    errors: list[BadRequest] = []
    for part in (train, held_out):
        try:
            readable, order = ordered(part, buckets)
            clips = of_folder(readable, order)
            clips.batch(0)  # as for clips of one size: fail now if none is usable
            found.append(clips)
        except BadRequest as error:
            errors.append(error)
        else:
            if part is train and (note := empty_note(order)):
                train.skipped.append(note)
    if not found:
        raise errors[0]
    if errors:
        message = f"the same clips are used for training and validation: {errors[0]}"
        return replace(found[0], skipped=[*found[0].skipped, message]), found[0]
    return found[0], found[1]


def ordered(folder: Folder, buckets: Buckets) -> tuple[Folder, Order]:
    """The readable clips of a folder, and the order of their batches."""
    readable, sizes = folder.filmed()
    return readable, Order(buckets, [ClipSize(*size) for size in sizes], folder.seed, folder.frameskip)
