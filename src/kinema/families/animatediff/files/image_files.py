"""Convert image models between a single file (ldm, sgm: CivitAI) and a diffusers folder, byte for byte.

Training leftovers in a file (averages, schedules, counters) have no place in the folder; ``kinema_extra/`` keeps them
with the file's header, so that converting back restores the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from kinema.checkpoints.convert import Conversion, TargetFile, cast
from kinema.checkpoints.files import Header, parse_header
from kinema.checkpoints.source import Source
from kinema.checkpoints.stable_diffusion import is_unused, usual_name
from kinema.checkpoints.stream import Stream
from kinema.checkpoints.table import Table, shapes_of
from kinema.families.animatediff.config import Config
from kinema.families.animatediff.files import folder, layout, opening
from kinema.families.animatediff.files.layout import ImageFile
from kinema.families.animatediff.files.scheduler import marked
from kinema.schema import BadRequest
from kinema.system import parse_metadata

EXTRA = "kinema_extra"
_ABSENT = {"vae": "VAE", "text": "text encoder"}


@dataclass(frozen=True)
class OpenedImage:
    """An image model of either layout under Kinema's names: headers without data, and a reader of single tensors."""

    image: ImageFile
    table: Table
    native: Header
    """Tensors under Kinema's names."""
    extra: Header
    """Tensors of the single file that the network has no place for, under the file's names."""
    read: Callable[[str], Tensor]
    text: bytes = b""
    """Header of the single file that this is or was converted from; empty if unknown."""


# ---------------------------------------------------------------------------------------- opening


def open_image(source: Source) -> OpenedImage | None:
    """Open a folder, a single file or one from `kinema train`; None if it is not an image model of this family."""
    if source.pipeline:
        return open_folder(source)
    if "kinema" not in source.metadata:
        return open_single(source.path, source.variant)
    family, config = parse_metadata(source.metadata["kinema"], str(source.path))
    return open_trained(source.path, config, source.variant) if family.name == "animatediff" else None


def open_single(path: Path, variant: str | None) -> OpenedImage | None:
    """Open a single file, checked by its header alone; None if it is not an image model."""
    source = Stream(path, variant)
    image = layout.recognise(source.header)
    if image is None:
        return None
    image = replace(image, config=marked(image.config, Source(path, variant))[0])
    table = image.table
    names = {usual_name(n): n for n in source.header if not is_unused(n)}
    table.check_foreign({usual_name: source.header[name][0] for usual_name, name in names.items()}, path.name)
    kept = {names[row.foreign] for row in table.rows if row.native}
    extra = {name: entry for name, entry in source.header.items() if name not in kept}
    native = {n: (shape, source.header[names[table.by_native[n][0].foreign]][1]) for n, shape in table.native.items()}

    def read(name: str) -> Tensor:
        return source[name] if name in extra else table.make_native(name, lambda foreign: source[names[foreign]])

    return OpenedImage(image, table, native, extra, read, source.text)


def open_folder(source: Source) -> OpenedImage | None:
    """Open a diffusers folder, checked by its configs and headers alone; None if it belongs to another family."""
    found = opening.open_source(source)
    if found is None:
        return None
    if found.config.motion != "none":
        raise BadRequest(
            f"{source.path} has a motion module, which other layouts of an image model cannot contain; convert its "
            f"{opening.MOTION_PART}/ and a folder of the image model separately"
        )
    streams = {part: Stream(source.path / part, source.variant) for part in found.parts}
    named = {opening.native_name(f"{part}.{name}"): (part, name) for part, stream in streams.items() for name in stream}
    named = {name: location for name, location in named.items() if not is_unused(name)}
    image = ImageFile(found.config, vae=True, text=True)
    table, native = image.table, {name: streams[part].header[key] for name, (part, key) in named.items()}
    table.check_native(shapes_of(native), source.path.name)
    extras = Stream(source.path / EXTRA) if (source.path / EXTRA).is_dir() else None
    extra = extras.header if extras is not None else {}

    def read(name: str) -> Tensor:
        if extras is not None and name in extra:
            return extras[name]
        part, key = named[name]
        return streams[part][key]

    text = extras.metadata.get("original_header", "").encode() if extras is not None else b""
    opened = OpenedImage(image, table, native, extra, read, text)
    return opened if _header_matches(opened) else OpenedImage(image, table, native, extra, read)


def open_trained(path: Path, config: Config, variant: str | None) -> OpenedImage:
    """Open a file written by `kinema train` with this config in its metadata."""
    if config.codec != "vae":
        raise BadRequest(f"{path.name} works on pixels; other layouts of an image model need a VAE")
    if config.motion != "none" or config.sparse or config.controls or config.adapters:
        raise BadRequest(
            f"{path.name} is an image model with add-ons, which other layouts cannot contain; convert the "
            "motion.safetensors or sparsectrl.safetensors next to it"
        )
    source, image = Stream(path, variant), ImageFile(config, vae=True, text=True)
    table = image.table
    table.check_native(shapes_of(source.header), path.name)
    return OpenedImage(image, table, dict(source.header), {}, source.__getitem__)


def _header_matches(opened: OpenedImage) -> bool:
    """Whether the single file's header lists exactly these tensors."""
    original = _tensors_of(opened.text)
    current = _single_header(opened, original)
    foreign = {row.foreign for row in opened.table.rows if row.native}
    whole = foreign <= {usual_name(name) for name in original} and opened.extra.keys() <= original.keys()
    return whole and all(current.get(name) == entry for name, entry in original.items())


def _tensors_of(text: bytes) -> Header:
    """Tensors listed in a header."""
    return parse_header(text, "the original header")[0] if text else {}


# ---------------------------------------------------------------------------------------- writing


def plan(opened: OpenedImage, kind: str, dtype: torch.dtype | None) -> Conversion:
    """Plan a conversion; raises `BadRequest` for an unsupported layout and for a folder that would lack a network."""
    if kind == "official":
        return plan_single(opened, dtype)
    if kind != "diffusers":
        raise BadRequest(f"image models have no layout {kind}; expected official (one file) or diffusers (a folder)")
    if absent := [what for part, what in _ABSENT.items() if not getattr(opened.image, part)]:
        raise BadRequest(f"the image model's file has no {' and no '.join(absent)}, which a diffusers folder needs")
    return plan_folder(opened, dtype)


def plan_single(opened: OpenedImage, dtype: torch.dtype | None) -> Conversion:
    """Plan the single file, with the original header if it was converted from one."""
    header = _single_header(opened, _tensors_of(opened.text))

    def make(name: str) -> Tensor:
        kept = name in opened.extra
        return cast(opened.read(name) if kept else opened.table.make_foreign(usual_name(name), opened.read), dtype)

    text = opened.text if dtype is None else b""
    metadata = {"format": "pt", **_marks(opened)}
    return Conversion((TargetFile("", cast(header, dtype), make, metadata, text or None),), {})


def _marks(opened: OpenedImage) -> dict[str, str]:
    """Metadata that says what the network predicts, unless tensors of the file do (`kinema.checkpoints.declared`)."""
    config = opened.image.config
    marks = {} if config.predicts == "eps" else {"modelspec.prediction_type": config.predicts}
    return marks | ({"ss_zero_terminal_snr": "True"} if config.zero_snr else {})


def _single_header(opened: OpenedImage, original: Header) -> Header:
    """The single file's tensors, under the names of its ``original`` header or the usual ones."""
    rows = {row.foreign: (row.shape, opened.native[row.native[0]][1]) for row in opened.table.rows if row.native}
    original_names = {usual_name(name): name for name in original if name not in opened.extra}
    return {original_names.get(name, name): entry for name, entry in rows.items()} | opened.extra


def plan_folder(opened: OpenedImage, dtype: torch.dtype | None) -> Conversion:
    """Plan the folder for diffusers, with leftovers in ``kinema_extra/``."""
    config, tail = opened.image.config, ".fp16" if dtype is torch.float16 else ""
    files = []
    for part in folder.parts(config):
        header = {n.partition(".")[2]: e for n, e in cast(opened.native, dtype).items() if n.startswith(f"{part}.")}
        path = f"{part}/{folder.PARTS[part]}{tail}.safetensors"
        files.append(TargetFile(path, header, _reader(opened, part, dtype), {"format": "pt"}))
    notes = ["weight files do not contain CLIP's vocabulary: copy it into tokenizer/ for diffusers"]
    if opened.extra or opened.text:
        about = "Tensors and header of the original single file that a diffusers folder cannot contain."
        metadata = {"about": about}
        if opened.text and dtype is None:
            metadata["original_header"] = opened.text.decode()

        def extra(name: str) -> Tensor:
            return cast(opened.read(name), dtype)

        files.append(TargetFile(f"{EXTRA}/model.safetensors", cast(opened.extra, dtype), extra, metadata))
        notes.append(f"{len(opened.extra)} tensors that this layout cannot contain are in {EXTRA}/")
    return Conversion(tuple(files), folder.configs(config), tuple(notes))


def _reader(opened: OpenedImage, part: str, dtype: torch.dtype | None) -> Callable[[str], Tensor]:
    return lambda name: cast(opened.read(f"{part}.{name}"), dtype)
