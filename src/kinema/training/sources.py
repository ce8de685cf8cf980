"""Where training clips come from: playroom, or a folder of the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from kinema.data import playroom, shards
from kinema.data.folder import Folder, first_part
from kinema.data.playroom import Playroom
from kinema.data.playroom.rendered import Rendered
from kinema.schema import BadRequest
from kinema.system import System, TrainingSettings
from kinema.training.options import TrainOptions
from kinema.training.stream import Clips

_SHARE = 0.9
"""Of a folder's clips, those that are trained on."""


@dataclass(frozen=True)
class Source:
    """Training and held-out clips, prompts for sample sheets, and what a resumed run must have alike."""

    train: Clips
    held_out: Clips
    prompts: Sequence[str]
    identity: Mapping[str, Any]


def open_source(
    options: TrainOptions, system: System, recipe: TrainingSettings, model: nn.Module | None = None
) -> Source:
    """The clips that the options name, at the system's native size; ``model`` is the network to be trained."""
    own = system.family.sampling.defaults(system.config)
    if options.data == "playroom":
        shown = recipe.playroom or Playroom()
        rendered = partial(Rendered, own.frames, own.height, own.width, own.fps, shown)
        return Source(
            rendered(seed=options.seed),
            rendered(seed=options.seed + 1, split="held-out"),
            playroom.prompts(6, seed=3, grammar="simple", split="held-out"),
            {"source": "playroom", **_told(shown)},
        )
    folder = Path(options.data)
    if not folder.is_dir():
        raise BadRequest(f"there is no folder {folder}; expected 'playroom' or a folder of clips with captions")
    if shards.is_latents(folder, follow_links=options.follow_links):
        return _latents(options, system, folder, model)
    # A frame skip counts frames as they were filmed (VDM's sense); otherwise clips play at the model's own rate.
    as_filmed = options.frameskip is not None or recipe.frameskip > 1
    every = Folder.scan(
        folder,
        frames=own.frames,
        height=own.height,
        width=own.width,
        fps=None if as_filmed else own.fps,
        frameskip=recipe.frameskip,
        seed=options.seed,
        crop=options.crop,
        flip=options.flip,
        follow_links=options.follow_links,
    )
    train, held_out = _readable(*every.split(_SHARE))
    captions = [caption for entry in held_out.entries for caption in entry.captions[:1]]
    how = {"fps": every.fps, "frameskip": every.frameskip, "crop": every.crop, "flip": every.flip}
    return Source(train, held_out, captions[:6], {"source": "folder", **how, "clips": every.fingerprint})


def _told(shown: Playroom) -> dict[str, Any]:
    """How the playroom is rendered, as far as it differs from plain clips: what a resumed run must say again."""
    told = {**asdict(shown), "without": list(shown.without)}
    return {name: value for name, value in told.items() if value not in (1.0, [], "")}


def _latents(options: TrainOptions, system: System, folder: Path, model: nn.Module | None) -> Source:
    """Clips encoded beforehand, refused where another model, or another size, made them."""
    told = {"crop": options.crop != "centre", "flip": options.flip, "frameskip": options.frameskip is not None}
    if extra := [name for name, value in told.items() if value]:
        raise BadRequest(f"{extra[0]} is decided when clips are encoded; leave it out for the latents in {folder}")
    special, own = system.family.training.tuning, system.family.sampling.defaults(system.config)
    every = shards.Latents.open(folder, options.seed, follow_links=options.follow_links)
    if special is None or every.made.family != system.family.name:
        raise BadRequest(f"{folder} holds clips encoded for {every.made.family}, not for {system.family.name}")
    networks = shards.hash_of(special.frozen(system.model if model is None else model))
    now = replace(every.made, networks=networks, frames=own.frames, height=own.height, width=own.width)
    shards.agree(folder, every.made, now)
    names = every.clips
    if len(names) == 1:
        train, held_out = (
            every,
            replace(every, skipped=["there is one clip only: it is trained on and held out at once"]),
        )
    else:
        first = first_part(names, _SHARE)
        train, held_out = replace(every.of(first), skipped=every.skipped), every.of(set(names) - first)
    captions = [caption for _, _, window in held_out.windows for caption in window.captions[:1]]
    how = {"fps": every.made.fps, "frameskip": every.made.frameskip, "dtype": every.made.dtype}
    return Source(train, held_out, captions[:6], {"source": "latents", **how, "clips": every.fingerprint})


def _readable(train: Folder, held_out: Folder) -> tuple[Folder, Folder]:
    """The two parts; where no clip of one can be read, the other serves for both, and that is said."""
    for part, other, name in ((held_out, train, "held-out"), (train, held_out, "training")):
        try:
            part.clip(0)
        except BadRequest as error:
            told = f"no {name} clip can be used, so one part of the folder serves both: {error}"
            spare = replace(other, skipped=[told])
            return (other, spare) if name == "held-out" else (spare, other)
    return train, held_out
