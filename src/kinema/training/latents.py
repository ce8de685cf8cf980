"""``kinema data latents``: precompute the outputs of a model's frozen networks for all clips.

Stored for each window: what `kinema.system.Tuning` computes of its pixels and of its captions beforehand, and its first
frame as uint8 pixels. Of SVD these are the moments of its latents (so that each step samples the posterior anew) and
the embedding of its first frame: training adds noise of a different level to the conditioning image at every step
before encoding it, so its latents cannot be precomputed; it encodes one frame per clip instead of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from kinema.training import trainable
from kinema.training.options import TrainOptions, check_ranges, option, parse_addons
from kinema.training.run_folder import claimed

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class LatentsOptions:
    """What to encode and how; None means the model's own size and frame rate, which training must then use too."""

    clips: str = option("folder of clips with captions", "", path=True)
    model: str = option("model to be trained: family/preset, alias, folder or file", "", path=True)
    variant: str | None = option(
        "file variant in a folder (fp16), or the published model of the weights (svd-xt)", None
    )
    add: str | None = option(
        "add-ons, such as vae=hunyuan_vae.safetensors,t5=FOLDER, separated by commas", None, path=True
    )
    out: str = option("folder for the shards; an interrupted one is resumed", "", path=True)
    frames: int | None = option("frames per window", None, 1, 4096)
    height: int | None = option("height in pixels", None, 1, 8192)
    width: int | None = option("width in pixels", None, 1, 8192)
    frameskip: int | None = option(
        "take every n-th source frame (default: resample to the model's frame rate)", None, 1, 1e4
    )
    stride: int | None = option("frames between window starts (default: windows do not overlap)", None, 1, 1e6)
    dtype: Literal["fp16", "fp32"] = option("precision of the stored tensors", "fp16")
    shard: int = option("approximate number of windows per shard", 64, 1, 1e6)
    follow_links: bool = option("follow links in the folder of clips, even out of it", False)
    device: str | None = option("device (default: a GPU if available)", None)
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
    """The ``folder`` of shards, its number of windows and clips, and the number of windows added by this call."""

    folder: Path
    windows: int
    clips: int
    added: int
    skipped: list[str] = field(default_factory=list)


def encode(options: LatentsOptions, on_event: OnEvent = ignore) -> Encoded:
    """Encode the clips that are not in ``out`` yet, shard by shard, and write the index.

    Raises BadRequest for a family without latents, clips that changed since they were encoded, shards of another model
    or size, and whatever `Folder.scan` raises.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    system = _system(options)
    tuning = system.family.training.tuning
    if tuning is None:
        raise BadRequest(f"{system.family.name} works on pixels, so it has no latents to precompute")
    shards.check_new(Path(options.out))
    clips = _folder(options, system)
    with claimed(Path(options.out)) as out:
        on_event(Phase("load", system.name))
        empty = _empty(system, tuning, options)
        settings = _settings(options, system, tuning, clips, empty)
        found = shards.read_shards(out, settings)
        done = {window.clip: window.hash for _, windows in found for window in windows}
        on_event(Phase("encode", f"{len(clips.entries)} clips, {len(done)} already encoded"))
        number, added, pending = shards.next_number(out), 0, []
        for entry in clips.entries:
            digest = file_hash(entry.path)
            if entry.name in done:
                if done[entry.name] != digest:
                    raise BadRequest(f"{entry.name} changed since it was encoded into {out}; name another folder")
                continue
            pending += _windows(system, tuning, clips, entry, digest, options)
            if len(pending) >= options.shard:
                path = shards.write_shard(out, number, settings, _with_text(system, tuning, pending, options), empty)
                number, added = number + 1, added + len(pending)
                on_event(Note(f"{path.name}: {len(pending)} windows"))
                pending = []
        if pending:
            shards.write_shard(out, number, settings, _with_text(system, tuning, pending, options), empty)
            added += len(pending)
        total = shards.write_index(out, settings, clips.skipped)
        if not total:
            raise BadRequest(f"no clip in {options.clips} is usable: {'; '.join(clips.skipped[-3:])}")
    for message in clips.skipped:
        on_event(Note(message))
    return Encoded(out, total, len(shards.Latents.open(out).clips), added, list(clips.skipped))


def _system(options: LatentsOptions) -> System:
    sizes = TrainOptions(frames=options.frames, height=options.height, width=options.width)
    opened = open_system(options.model, variant=options.variant, device=options.device, add=parse_addons(options.add))
    system = trainable.with_options(opened, sizes)
    system.family.training.settings(system.config)  # refuses a model that lacks what it encodes with
    return system


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


def _settings(
    options: LatentsOptions, system: System, tuning: Tuning, clips: Folder, empty: Mapping[str, Tensor]
) -> EncodingSettings:
    return EncodingSettings(
        family=system.family.name,
        networks=shards.hash_of(tuning.frozen(system.model)),
        frames=clips.frames,
        height=clips.height,
        width=clips.width,
        fps=clips.fps,
        frameskip=clips.frameskip,
        stride=options.stride or clips.frames,
        dtype=options.dtype,
        text=shards.hash_of(empty) if empty else "",
    )


def _empty(system: System, tuning: Tuning, options: LatentsOptions) -> dict[str, Tensor]:
    """What the text encoders make of the empty caption; nothing if the family does not encode text beforehand."""
    (found,) = tuning.encode_captions(system, [""], [None], [None])
    return _stored(found, options)


def _stored(tensors: Mapping[str, Tensor], options: LatentsOptions) -> dict[str, Tensor]:
    return {name: value.to("cpu", DTYPES[options.dtype]).contiguous() for name, value in tensors.items()}


def _with_text(
    system: System, tuning: Tuning, windows: Sequence[tuple[Window, dict[str, Tensor]]], options: LatentsOptions
) -> list[tuple[Window, dict[str, Tensor]]]:
    """The windows with the encoded captions of each; all of a shard at once, since encoders take long to load."""
    rows = [(i, k, text) for i, (w, _) in enumerate(windows) for k, text in enumerate(w.captions or ("",))]
    about = [windows[i][0] for i, _, _ in rows]
    captions = [caption for _, _, caption in rows]
    encoded = tuning.encode_captions(system, captions, [w.fps or None for w in about], [w.motion for w in about])
    found = [(window, dict(tensors)) for window, tensors in windows]
    for (i, k, _), tensors in zip(rows, encoded, strict=True):
        found[i][1].update({f"caption-{k}.{name}": value for name, value in _stored(tensors, options).items()})
    return found


@torch.no_grad()
def _windows(  # noqa: PLR0917
    system: System,
    tuning: Tuning,
    clips: Folder,
    entry: Entry,
    digest: str,
    options: LatentsOptions,
) -> list[tuple[Window, dict[str, Tensor]]]:
    found = []
    for start, clip in clips.windows(entry, options.stride or clips.frames):
        parts = tuning.encode(system.model, clip.video[None].to(system.device, system.dtype))
        tensors = _stored({key: value[0] for key, value in parts.items()}, options)
        tensors["picture"] = ((clip.video[:, 0] + 1) * 127.5).round().to(torch.uint8)
        window = Window(entry.name, digest, start, entry.captions, clip.fps or 0.0, clip.motion)
        found.append((window, tensors))
    return found
