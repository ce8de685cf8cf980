"""Image models from one file (ldm's, sgm's: CivitAI) to a folder of diffusers, and back to the byte.

The folder has no place for what training left in a file (averages, schedules, counters), which is kept in
``kinema_extra/`` with the file's own header, for the way back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kinema.checkpoints.convert import Conversion, TargetFile, cast
from kinema.checkpoints.files import Header, listed
from kinema.checkpoints.source import Source
from kinema.checkpoints.stable_diffusion import is_unused, usual
from kinema.checkpoints.stream import Stream
from kinema.checkpoints.table import Table, shapes_of
from kinema.families.animatediff.config import Config
from kinema.families.animatediff.files import folder, layout, opening
from kinema.families.animatediff.files.layout import ImageFile
from kinema.schema import BadRequest
from kinema.system import family_of

EXTRA = "kinema_extra"
_ABSENT = {"vae": "VAE", "text": "text encoder"}


@dataclass(frozen=True)
class OpenedImage:
    """An image model of either layout, seen as ours: headers without data, and a way to read one tensor."""

    image: ImageFile
    table: Table
    ours: Header
    extra: Header
    """Tensors of the single file that have no place in ours, by their names there."""
    read: Callable[[str], Tensor]
    text: bytes = b""
    """The header of the single file this is, or was converted from; empty when that is not known."""


# ---------------------------------------------------------------------------------------- opening


def open_image(source: Source) -> OpenedImage | None:
    """A folder, a single file, or one that `kinema train` wrote; None when it is no image model of this family."""
    if source.pipeline:
        return open_folder(source)
    if "kinema" not in source.metadata:
        return open_single(source.path, source.variant)
    family, config = family_of(source.metadata["kinema"], str(source.path))
    return open_own(source.path, config, source.variant) if family.name == "animatediff" else None


def open_single(path: Path, variant: str | None) -> OpenedImage | None:
    """A single file, checked from its header alone; None when it is no image model."""
    source = Stream(path, variant)
    image = layout.recognise(source.header)
    if image is None:
        return None
    known, spelt = (
        image.table,
        {usual(n): n for n in source.header if not is_unused(n)},
    )
    known.check_theirs({name: source.header[own][0] for name, own in spelt.items()}, path.name)
    kept = {spelt[row.theirs] for row in known.rows if row.ours}
    extra = {name: entry for name, entry in source.header.items() if name not in kept}
    ours = {n: (shape, source.header[spelt[known.by_ours[n][0].theirs]][1]) for n, shape in known.ours.items()}

    def read(name: str) -> Tensor:
        return source[name] if name in extra else known.make_ours(name, lambda theirs: source[spelt[theirs]])

    return OpenedImage(image, known, ours, extra, read, source.text)


def open_folder(source: Source) -> OpenedImage | None:
    """A folder of diffusers, checked from its configs and headers alone; None when it is of another family."""
    found = opening.open_source(source)
    if found is None:
        return None
    if found.config.motion != "none":
        raise BadRequest(
            f"{source.path} is a folder of {source.pipeline} with a motion module in it, which no other layout of an "
            f"image model has a place for: convert its {opening.MOTION_PART}/, and a folder of the image model alone"
        )
    streams = {part: Stream(source.path / part, source.variant) for part in found.parts}
    named = {opening.our_name(f"{part}.{name}"): (part, name) for part, held in streams.items() for name in held}
    named = {name: place for name, place in named.items() if not is_unused(name)}
    image = ImageFile(found.config, vae=True, text=True)
    known, ours = image.table, {name: streams[part].header[own] for name, (part, own) in named.items()}
    known.check_ours(shapes_of(ours), source.path.name)
    extras = Stream(source.path / EXTRA) if (source.path / EXTRA).is_dir() else None
    extra = extras.header if extras is not None else {}

    def read(name: str) -> Tensor:
        if extras is not None and name in extra:
            return extras[name]
        part, own = named[name]
        return streams[part][own]

    text = extras.metadata.get("original_header", "").encode() if extras is not None else b""
    opened = OpenedImage(image, known, ours, extra, read, text)
    return opened if _fits(opened) else OpenedImage(image, known, ours, extra, read)


def open_own(path: Path, config: Config, variant: str | None) -> OpenedImage:
    """A file that `kinema train` wrote, whose note tells this config; its names are ours."""
    if config.codec != "vae":
        raise BadRequest(f"{path.name} works on pixels, and every other layout of an image model has a VAE")
    if config.motion != "none" or config.sparse or config.controls or config.adapters:
        raise BadRequest(
            f"{path.name} is an image model with more in it, which no other layout has a place for as a whole: "
            "convert the motion.safetensors or sparsectrl.safetensors that training wrote beside it"
        )
    source, image = Stream(path, variant), ImageFile(config, vae=True, text=True)
    known = image.table
    known.check_ours(shapes_of(source.header), path.name)
    return OpenedImage(image, known, dict(source.header), {}, source.__getitem__)


def _fits(opened: OpenedImage) -> bool:
    """Whether the header of the single file lists exactly the tensors that are here."""
    told = _listed(opened.text)
    now = _single_header(opened, told)
    here = {row.theirs for row in opened.table.rows if row.ours}
    whole = here <= {usual(name) for name in told} and opened.extra.keys() <= told.keys()
    return whole and all(now.get(name) == entry for name, entry in told.items())


def _listed(text: bytes) -> Header:
    """What a header lists."""
    return listed(text, "the header that was kept")[0] if text else {}


# ---------------------------------------------------------------------------------------- writing


def plan(opened: OpenedImage, kind: str, dtype: torch.dtype | None) -> Conversion:
    """Raises `BadRequest` for a layout that image models have not, and for a folder that would lack a network."""
    if kind == "official":
        return plan_single(opened, dtype)
    if kind != "diffusers":
        raise BadRequest(f"an image model has no layout {kind}; expected official (one file) or diffusers (a folder)")
    if absent := [what for part, what in _ABSENT.items() if not getattr(opened.image, part)]:
        raise BadRequest(f"this image model's file has no {' and no '.join(absent)}, which a folder of diffusers needs")
    return plan_folder(opened, dtype)


def plan_single(opened: OpenedImage, dtype: torch.dtype | None) -> Conversion:
    """The single file; with the header of the file that it was, if it was one."""
    header = _single_header(opened, _listed(opened.text))

    def make(name: str) -> Tensor:
        kept = name in opened.extra
        return cast(opened.read(name) if kept else opened.table.make_theirs(usual(name), opened.read), dtype)

    text = opened.text if dtype is None else b""
    return Conversion((TargetFile("", cast(header, dtype), make, {"format": "pt"}, text or None),), {})


def _single_header(opened: OpenedImage, told: Header) -> Header:
    """The single file's tensors, under the names that it had (``told``) or the usual ones."""
    rows = {row.theirs: (row.shape, opened.ours[row.ours[0]][1]) for row in opened.table.rows if row.ours}
    spelt = {usual(name): name for name in told if name not in opened.extra}
    return {spelt.get(name, name): entry for name, entry in rows.items()} | opened.extra


def plan_folder(opened: OpenedImage, dtype: torch.dtype | None) -> Conversion:
    """The folder as diffusers reads it, and what it has no place for in ``kinema_extra/``."""
    config, tail = opened.image.config, ".fp16" if dtype is torch.float16 else ""
    files = []
    for part in folder.parts(config):
        own = {n.partition(".")[2]: e for n, e in cast(opened.ours, dtype).items() if n.startswith(f"{part}.")}
        place = f"{part}/{folder.PARTS[part]}{tail}.safetensors"
        files.append(TargetFile(place, own, _inside(opened, part, dtype), {"format": "pt"}))
    notes = ["no weight file holds CLIP's vocabulary: diffusers looks for it in tokenizer/, where it is to be put"]
    if opened.extra or opened.text:
        about = "Tensors and header of the single file that the folder has no place for; nothing reads them."
        told = {"about": about}
        if opened.text and dtype is None:
            told["original_header"] = opened.text.decode()

        def extra(name: str) -> Tensor:
            return cast(opened.read(name), dtype)

        files.append(TargetFile(f"{EXTRA}/model.safetensors", cast(opened.extra, dtype), extra, told))
        notes.append(f"{len(opened.extra)} tensors that this layout has no place for are kept in {EXTRA}/")
    return Conversion(tuple(files), folder.configs(config), tuple(notes))


def _inside(opened: OpenedImage, part: str, dtype: torch.dtype | None) -> Callable[[str], Tensor]:
    return lambda name: cast(opened.read(f"{part}.{name}"), dtype)
