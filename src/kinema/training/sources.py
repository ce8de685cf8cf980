"""Sources of training clips: playroom, a folder of clips, or precomputed latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from kinema.data import playroom, shards
from kinema.data.buckets import Buckets
from kinema.data.clip import Clips
from kinema.data.folder import Folder, first_part
from kinema.data.playroom import Playroom
from kinema.data.playroom.rendered import Rendered
from kinema.events import OnEvent, ignore
from kinema.schema import BadRequest
from kinema.system import System, TrainingSettings
from kinema.training import bucket_sources
from kinema.training.options import TrainOptions

_SHARE = 0.9
"""Share of a folder's clips used for training; the rest is held out."""


class Prepared(NamedTuple):
    """The system to train, its training settings with the options applied, and the buckets of its batches."""

    system: System
    settings: TrainingSettings
    buckets: Buckets | None = None


@dataclass(frozen=True)
class Source:
    """Training and held-out clips, prompts for sample sheets, and the identity that a resumed run must match."""

    train: Clips
    held_out: Clips
    prompts: Sequence[str]
    identity: Mapping[str, Any]


def open_source(
    options: TrainOptions, prepared: Prepared, model: nn.Module | None = None, on_event: OnEvent = ignore
) -> Source:
    """Open the clips of the options at the system's native size, or in buckets; ``model`` is the network to train."""
    system, settings, buckets = prepared
    own = system.family.sampling.defaults(system.config)
    chosen = {} if buckets is None else {"buckets": buckets.text}
    if options.data == "playroom":
        rendering = settings.playroom or Playroom()
        rendered = partial(Rendered, own.frames, own.height, own.width, own.fps)
        train = rendered(rendering, options.seed)
        # The best weights are chosen on these.
        held_out = rendered(replace(rendering, split="tuning"), options.seed + 1)
        return Source(
            train if buckets is None else bucket_sources.rendered(train, buckets),
            held_out if buckets is None else bucket_sources.rendered(held_out, buckets),
            playroom.prompts(6, seed=3, grammar="simple", split="tuning"),
            {"source": "playroom", **_identity(rendering), **chosen},
        )
    folder = Path(options.data)
    if not folder.is_dir():
        raise BadRequest(f"there is no folder {folder}; expected 'playroom' or a folder of clips with captions")
    if shards.is_latents(folder, follow_links=options.follow_links):
        if buckets is not None:
            raise BadRequest(f"buckets do not apply to precomputed latents ({folder}); leave out buckets")
        return _latents(options, system, folder, model)
    every = scan(options, system, settings, images=buckets is not None and buckets.has_images)
    how = {"fps": every.fps, "frameskip": every.frameskip, "crop": every.crop, "flip": every.flip}
    identity = {"source": "folder", **how, **chosen, "clips": every.fingerprint}
    parts = every.split(_SHARE)
    if buckets is not None:
        return Source(*bucket_sources.sorted_into(buckets, *parts, on_event), _captions(parts[1]), identity)
    learned, unseen = _readable(*parts)
    return Source(learned, unseen, _captions(unseen), identity)


def scan(options: TrainOptions, system: System, settings: TrainingSettings, *, images: bool = False) -> Folder:
    """Find the clips of the options' folder, at the system's native size; with ``images`` also its images."""
    own = system.family.sampling.defaults(system.config)
    # A frame skip counts source frames (as in VDM); otherwise clips are resampled to the model's frame rate.
    as_filmed = options.frameskip is not None or settings.frameskip > 1
    return Folder.scan(
        options.data,
        frames=own.frames,
        height=own.height,
        width=own.width,
        fps=None if as_filmed else own.fps,
        frameskip=settings.frameskip,
        seed=options.seed,
        crop=options.crop,
        flip=options.flip,
        follow_links=options.follow_links,
        images=images,
    )


def _captions(folder: Folder) -> list[str]:
    return [caption for entry in folder.entries for caption in entry.captions[:1]][:6]


def _identity(rendering: Playroom) -> dict[str, Any]:
    """The split and the non-default playroom settings, which a resumed run must match."""
    values = {**asdict(rendering), "without": list(rendering.without)}
    return {name: value for name, value in values.items() if value not in (1.0, 0, [], "")}


def _latents(options: TrainOptions, system: System, folder: Path, model: nn.Module | None) -> Source:
    """Open precomputed latents; raises BadRequest if they belong to another model or size."""
    given = {"crop": options.crop != "centre", "flip": options.flip, "frameskip": options.frameskip is not None}
    if extra := [name for name, value in given.items() if value]:
        raise BadRequest(f"{extra[0]} does not apply to precomputed latents ({folder}); leave it out")
    tuning, own = system.family.training.tuning, system.family.sampling.defaults(system.config)
    every = shards.Latents.open(folder, options.seed, follow_links=options.follow_links)
    if tuning is None or every.settings.family != system.family.name:
        raise BadRequest(f"{folder} holds clips encoded for {every.settings.family}, not for {system.family.name}")
    networks = shards.hash_of(tuning.frozen(system.model if model is None else model))
    current = replace(every.settings, networks=networks, frames=own.frames, height=own.height, width=own.width)
    shards.check_equal(folder, every.settings, current)
    names = every.clips
    if len(names) == 1:
        train, held_out = (
            every,
            replace(every, skipped=["there is only one clip: it is used for both training and validation"]),
        )
    else:
        first = first_part(names, _SHARE)
        train, held_out = replace(every.of(first), skipped=every.skipped), every.of(set(names) - first)
    captions = [caption for _, _, window in held_out.windows for caption in window.captions[:1]]
    how = {"fps": every.settings.fps, "frameskip": every.settings.frameskip, "dtype": every.settings.dtype}
    return Source(train, held_out, captions[:6], {"source": "latents", **how, "clips": every.fingerprint})


def _readable(train: Folder, held_out: Folder) -> tuple[Folder, Folder]:
    """The two parts; if no clip of one is readable, the other replaces it, which is reported."""
    for part, other, name in ((held_out, train, "held-out"), (train, held_out, "training")):
        try:
            part.clip(0)
        except BadRequest as error:
            message = f"no {name} clip is usable, so the same clips are used for training and validation: {error}"
            spare = replace(other, skipped=[message])
            return (other, spare) if name == "held-out" else (spare, other)
    return train, held_out
