"""``kinema data latents``: what a model's frozen networks make of clips, computed once for every run.

Kept of a window: the moments of its latents (so that the posterior is drawn anew at every step), the embedding of its
first frame, and that frame's own pixels as bytes. The last because the picture is noised before it is encoded, by
another amount at every step: no latents stored beforehand could stand for it. Encoding one frame of a clip instead
of all is what is left to do in training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kinema.data import shards
from kinema.data.folder import Folder
from kinema.data.listing import Entry
from kinema.data.shards import EncodingSettings, Window
from kinema.events import Note, OnEvent, Phase, ignore
from kinema.provenance import file_hash
from kinema.schema import BadRequest
from kinema.system import System, Tuning, open_system
from kinema.training import learning
from kinema.training.options import TrainOptions, check_ranges, option
from kinema.training.place import claimed

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class LatentsOptions:
    """What to encode and how; None is the model's own size and rate, which training must then have too."""

    clips: str = option("folder of clips with captions", "", path=True)
    model: str = option("family/preset, alias, folder or file: the model that will be trained", "", path=True)
    variant: str | None = option("files of a folder (fp16), or the published model that weights are (svd-xt)", None)
    out: str = option("folder of the shards; what is there is gone on with", "", path=True)
    frames: int | None = option("frames a window", None, 1, 4096)
    height: int | None = option("height in pixels", None, 1, 8192)
    width: int | None = option("width in pixels", None, 1, 8192)
    frameskip: int | None = option(
        "take every n-th frame as filmed; left out, clips play at the model's rate", None, 1, 1e4
    )
    stride: int | None = option(
        "frames from one window's start to the next; left out, windows do not overlap", None, 1, 1e6
    )
    dtype: Literal["fp16", "fp32"] = option("precision of what is stored", "fp16")
    shard: int = option("windows a shard, about", 64, 1, 1e6)
    follow_links: bool = option("read what links in the folder of clips lead to, outside of it too", False)
    device: str | None = option("device; the GPU when there is one", None)
    threads: int | None = option("CPU threads", None, 1, 1024)

    def __post_init__(self) -> None:
        check_ranges(self)
        for name in ("clips", "model", "out"):
            if not getattr(self, name):
                raise BadRequest(f"{name} is missing: kinema data latents CLIPS --model svd.safetensors --out latents")
        if self.dtype not in DTYPES:
            raise BadRequest(f"dtype is {self.dtype!r}; expected one of {', '.join(DTYPES)}")


@dataclass(frozen=True)
class Encoded:
    """``folder`` of the shards, windows and clips in it, and how many windows this call added."""

    folder: Path
    windows: int
    clips: int
    added: int
    left_out: list[str] = field(default_factory=list)


def encode(options: LatentsOptions, on_event: OnEvent = ignore) -> Encoded:
    """Encode the clips that are not in ``out`` yet, shard by shard, and write the index.

    Raises BadRequest for a family without latents, clips that changed since they were encoded, shards that were made
    by another model or at another size, and everything `Folder.scan` refuses.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    system = _system(options)
    special = system.family.training.tuning
    if special is None:
        raise BadRequest(f"{system.family.name} works on pixels, so there is nothing to encode beforehand")
    shards.check_new(Path(options.out))
    clips = _folder(options, system)
    with claimed(Path(options.out)) as out:
        on_event(Phase("load", system.name))
        made = _made(options, system, special, clips)
        found = shards.shards(out, made)
        done = {window.clip: window.hash for _, windows in found for window in windows}
        on_event(Phase("encode", f"{len(clips.entries)} clips, {len(done)} of them encoded already"))
        number, added, pending = shards.next_number(out), 0, []
        for entry in clips.entries:
            name = file_hash(entry.path)
            if entry.name in done:
                if done[entry.name] != name:
                    raise BadRequest(f"{entry.name} changed since it was encoded into {out}; name another folder")
                continue
            pending += _windows(system, special, clips, entry, name, options)
            if len(pending) >= options.shard:
                path = shards.write_shard(out, number, made, pending)
                number, added = number + 1, added + len(pending)
                on_event(Note(f"{path.name}: {len(pending)} windows"))
                pending = []
        if pending:
            shards.write_shard(out, number, made, pending)
            added += len(pending)
        total = shards.write_index(out, made, clips.skipped)
        if not total:
            raise BadRequest(f"none of the clips in {options.clips} can be used: {'; '.join(clips.skipped[-3:])}")
    for sentence in clips.skipped:
        on_event(Note(sentence))
    return Encoded(out, total, len(shards.Latents.open(out).clips), added, list(clips.skipped))


def _system(options: LatentsOptions) -> System:
    sizes = TrainOptions(frames=options.frames, height=options.height, width=options.width)
    opened = open_system(options.model, variant=options.variant, device=options.device)
    return learning.with_options(opened, sizes)


def _folder(options: LatentsOptions, system: System) -> Folder:
    own = system.family.sampling.defaults(system.config)
    return Folder.scan(
        options.clips,
        frames=own.frames,
        height=own.height,
        width=own.width,
        fps=None if options.frameskip else own.fps,
        frameskip=options.frameskip or 1,
        follow_links=options.follow_links,
    )


def _made(options: LatentsOptions, system: System, special: Tuning, clips: Folder) -> EncodingSettings:
    return EncodingSettings(
        family=system.family.name,
        networks=shards.hash_of(special.frozen(system.model)),
        frames=clips.frames,
        height=clips.height,
        width=clips.width,
        fps=clips.fps,
        frameskip=clips.frameskip,
        stride=options.stride or clips.frames,
        dtype=options.dtype,
    )


@torch.no_grad()
def _windows(  # noqa: PLR0917
    system: System,
    special: Tuning,
    clips: Folder,
    entry: Entry,
    name: str,
    options: LatentsOptions,
) -> list[tuple[Window, dict[str, Tensor]]]:
    found = []
    for start, clip in clips.windows(entry, options.stride or clips.frames):
        parts = special.encode(system.model, clip.video[None].to(system.device, system.dtype))
        kept = {key: value[0].to("cpu", DTYPES[options.dtype]) for key, value in parts.items()}
        kept["picture"] = ((clip.video[:, 0] + 1) * 127.5).round().to(torch.uint8)
        window = Window(entry.name, name, start, entry.captions, clip.fps or 0.0, clip.motion)
        found.append((window, kept))
    return found
