"""SVD's weights in and out: what a file is, its tensors under our names, and either layout written from the other.

The folder holds less than the single file: the file has two VAEs (one encodes the picture, one decodes the
video) and remnants of CLIP's text side. Conversion to a folder keeps these in ``kinema_extra/``, with the
file's own header, so that converting back gives the file again byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import gcd
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from kinema.checkpoints import files, lora_formats
from kinema.checkpoints.convert import Conversion, TargetFile, cast
from kinema.checkpoints.files import Header, listed
from kinema.checkpoints.lora_formats import Lora, is_lora
from kinema.checkpoints.source import Source
from kinema.checkpoints.stream import Stream
from kinema.checkpoints.table import Row, Table, count, shape_in, shapes_of
from kinema.families.svd import folder
from kinema.families.svd.config import PRESETS, Config
from kinema.families.svd.layout import CLIP, FIRST_STAGE, UNET, VAE_AT, Outline, table
from kinema.families.svd.lora import read as read_lora
from kinema.families.svd.own import read as read_own
from kinema.schema import BadRequest

T = TypeVar("T")

EXTRA = "kinema_extra"
LAYOUT_NAMES = ("sgm", "diffusers")
_POSITION_IDS = "image_encoder.vision_model.embeddings.position_ids"
"""A counter that transformers before 4.31 saved with the weights; it is 0, 1, 2, … always."""


@dataclass(frozen=True)
class Opened:
    """A checkpoint of either layout, seen as ours: headers without data, and a way to read one tensor."""

    outline: Outline
    ours: Header
    extra: Header
    """Tensors of the single file that have no place in ours, by their names there."""
    read: Callable[[str], Tensor]
    where: str
    frames: int
    text: bytes = b""
    """The header of the single file this is, or was converted from; empty when that is not known."""


# ------------------------------------------------------------------------------- recognising


def recognise(header: Header) -> Outline | None:
    """The sizes of an sgm single file of SVD or SV3D, read off its keys and shapes; None for any other file.

    Frames, steps and guidance are not in the weights. Raises `BadRequest` that names a tensor which must
    be there to tell the size.
    """
    if not any(name.startswith(f"{UNET}input_blocks.1.0.time_stack.") for name in header):
        return None
    if any(".time_mix_blocks." in name for name in header):  # Stable Video 4D
        return None
    kind = next((k for k, at in VAE_AT.items() if _has(header, f"conditioner.embedders.{at}.encoder.")), None)
    if kind is None:
        return None
    return Outline(kind=kind, **_unet_sizes(header), **_vae_sizes(header), **_clip_sizes(header))  # type: ignore[arg-type]


def _has(header: Header, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in header)


_shape = partial(shape_in, "Stable Video Diffusion")


def _unet_sizes(header: Header) -> dict[str, Any]:
    widths: list[int] = []
    attention: list[bool] = []
    resnets = run = 0
    for n in range(1, count(header, f"{UNET}input_blocks.")):
        block = f"{UNET}input_blocks.{n}."
        if _has(header, f"{block}0.op."):
            resnets, run = run, 0
            continue
        if run == 0:
            widths.append(_shape(header, f"{block}0.out_layers.3.weight", 4)[0])
            attention.append(_has(header, f"{block}1."))
        run += 1
    middle = f"{UNET}middle_block.1.transformer_blocks."
    return {
        "in_channels": _shape(header, f"{UNET}input_blocks.0.0.weight", 4)[1],
        "out_channels": _shape(header, f"{UNET}out.2.weight", 4)[0],
        "widths": tuple(widths),
        "resnets": resnets or run,
        "attention": tuple(attention),
        "depth": count(header, middle),
        "context": _shape(header, f"{middle}0.attn2.to_k.weight", 2)[1],
        "vector": _shape(header, f"{UNET}label_emb.0.0.weight", 2)[1],
    }


def _vae_sizes(header: Header) -> dict[str, Any]:
    decoder = f"{FIRST_STAGE}decoder."
    levels = count(header, f"{decoder}up.")
    latent = _shape(header, f"{decoder}conv_in.weight", 4)[1]
    return {
        "vae_widths": tuple(_shape(header, f"{decoder}up.{i}.block.0.conv2.weight", 4)[0] for i in range(levels)),
        "vae_resnets": count(header, f"{decoder}up.0.block.") - 1,
        "latent": latent,
        "decoder": "temporal" if _has(header, f"{decoder}mid.block_1.time_stack.") else "image",
        "post_quant": _has(header, f"{FIRST_STAGE}post_quant_conv."),
    }


def _clip_sizes(header: Header) -> dict[str, Any]:
    visual = f"{CLIP}visual."
    width, embedding = _shape(header, f"{visual}proj", 2)
    sizes = {
        "clip_width": width,
        "embedding": embedding,
        "clip_hidden": _shape(header, f"{visual}transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "clip_layers": count(header, f"{visual}transformer.resblocks."),
        "clip_positions": _shape(header, f"{visual}positional_embedding", 2)[0],
        "patch": _shape(header, f"{visual}conv1.weight", 4)[2],
    }
    if f"{CLIP}token_embedding.weight" in header:
        sizes["vocabulary"], sizes["text_width"] = _shape(header, f"{CLIP}token_embedding.weight", 2)
    if f"{CLIP}positional_embedding" in header:
        sizes["text_length"] = _shape(header, f"{CLIP}positional_embedding", 2)[0]
    return sizes


def variant(outline: Outline, name: str = "") -> str:
    """The published model this is: by its sizes, and by its name where those agree (svd, svd-xt, svd-xt-1.1)."""
    if outline.kind == "sv3d":
        return "sv3d-p" if outline.vector % 5 == 0 else "sv3d-u"
    told = words(name)
    if "xt" not in told:
        return "svd"
    return "svd-xt-1.1" if ("1", "1") in pairwise(told) else "svd-xt"


def words(name: str) -> list[str]:
    """What a file's name is made of: ``svd_xt.fp16`` is svd, xt and fp16."""
    return re.split(r"[_.\-\s]+", name.lower())


def sized(preset: Config, outline: Outline) -> Config:
    """A published model's sampling with the sizes of this network.

    Heads are not told by weights: 64 channels each in the U-Net and 80 in CLIP, as published, or the
    largest part of these that divides a smaller network. Raises `BadRequest` for a network that is not built here.
    """
    plain = (*(True for _ in outline.widths[1:]), False)
    odd = {
        "in_channels": (outline.in_channels, 2 * outline.latent),
        "out_channels": (outline.out_channels, outline.latent),
        "transformer layers": (outline.depth, 1),
        "levels with attention": (outline.attention, plain),
    }
    if faults := [f"{what} {found}, expected {wanted}" for what, (found, wanted) in odd.items() if found != wanted]:
        raise BadRequest(f"this network of Stable Video Diffusion is not one that is built here: {'; '.join(faults)}")
    unit = outline.vector * 256 // sum(width for _, width in preset.scalars)
    head, clip_head = gcd(64, *outline.widths), gcd(80, outline.clip_width)
    return replace(
        preset,
        channels=outline.widths,
        layers=outline.resnets,
        heads=tuple(width // head for width in outline.widths),
        context=outline.context,
        scalars=tuple((scalar, width * unit // 256) for scalar, width in preset.scalars),
        latent_channels=outline.latent,
        vae_channels=outline.vae_widths,
        vae_layers=outline.vae_resnets,
        decoder=outline.decoder,
        clip_width=outline.clip_width,
        clip_layers=outline.clip_layers,
        clip_heads=outline.clip_width // clip_head,
        clip_mlp=outline.clip_hidden,
        clip_patch=outline.patch,
        clip_side=outline.clip_side,
    )


# ---------------------------------------------------------------------------------- loading


def from_sgm(outline: Outline, tensors: Mapping[str, Tensor], where: str = "this file") -> dict[str, Tensor]:
    """A single file's tensors as ``unet.…``, ``vae.…`` and ``image_encoder.…``, views where that is possible.

    Every key is used, known to be unused, or named in a `BadRequest`; so is one that is missing.
    """
    return table(outline).forward(tensors, where)


def open_sgm(path: Path, variant_name: str | None = None) -> Opened | None:
    """A single file, checked from its header alone; None when it is not SVD's."""
    source = Stream(path, variant_name)
    outline = recognise(source.header)
    if outline is None:
        return None
    known = table(outline)
    known.check_theirs(shapes_of(source.header), path.name)
    ours = {name: (shape, source.header[known.by_ours[name][0].theirs][1]) for name, shape in known.ours.items()}
    extra = {name: entry for name, entry in source.header.items() if not known.by_theirs[name].ours}

    def read(name: str) -> Tensor:
        return source[name] if name in extra else known.make_ours(name, source.__getitem__)

    frames = PRESETS[variant(outline, path.stem)].frames
    return Opened(outline, ours, extra, read, path.name, frames, source.text)


def open_own(path: Path, variant_name: str | None = None) -> Opened | None:
    """A file that `kinema train` wrote, checked from its header alone; None when it is not SVD's."""
    told = read_own(path, variant_name)
    if told is None:
        return None
    outline, source, frames = told
    return Opened(outline, dict(source.header), {}, source.__getitem__, path.name, frames)


def open_folder(source: Source) -> Opened | None:
    """A diffusers folder, checked from its configs and headers alone; None when it is not SVD's.

    Raises `BadRequest` for a folder that lacks a part, or whose tensors do not agree with its configs.
    """
    configs = folder.read_configs(source)
    if configs is None:
        return None
    path = source.path
    sources = {part: Stream(path / part, source.variant) for part in folder.PARTS}
    ours = networks_own(
        {f"{part}.{name}": entry for part, held in sources.items() for name, entry in held.header.items()}
    )
    extras = Stream(path / EXTRA) if (path / EXTRA).is_dir() else None
    outline = _with_extra(folder.outline(configs), extras)
    known = table(outline)
    known.check_ours(shapes_of(ours), path.name)

    def read(name: str) -> Tensor:
        if extras is not None and name in extras:
            return extras[name]
        part, _, inner = name.partition(".")
        return sources[part][inner]

    extra = extras.header if extras is not None else {}
    _check_extra(known, extra, f"{path.name}/{EXTRA}")
    text = _kept_text(extras, known, ours) if extras is not None else b""
    return Opened(outline, ours, extra, read, path.name, folder.frames(configs), text)


def networks_own(named: Mapping[str, T]) -> dict[str, T]:
    """What a folder's parts hold, without the counter that older files of CLIP have."""
    return {name: value for name, value in named.items() if name != _POSITION_IDS}


def _with_extra(outline: Outline, extras: Stream | None) -> Outline:
    """The outline with the sizes that only the kept remnants tell."""
    if extras is None:
        return outline
    shapes = shapes_of(extras.header)
    vocabulary, width = shapes.get(f"{CLIP}token_embedding.weight", (outline.vocabulary, outline.text_width))
    length = shapes.get(f"{CLIP}positional_embedding", (outline.text_length,))[0]
    return replace(outline, vocabulary=vocabulary, text_width=width, text_length=length)


def _check_extra(known: Table, extra: Header, where: str) -> None:
    aside = Table(row for row in known.rows if not row.ours)
    aside.check_theirs(shapes_of(extra), where)


def _kept_text(extras: Stream, known: Table, ours: Header) -> bytes:
    """The header of the original file, if the tensors it lists are exactly those that are here."""
    text = extras.metadata.get("original_header", "").encode()
    if not text:
        return b""
    told, _ = listed(text, "the header that was kept")
    now = _sgm_header(known, ours, extras.header)
    whole = all(row.theirs in told for row in known.rows if row.ours or row.theirs in extras.header)
    same = all(now.get(name) == entry for name, entry in told.items())
    return text if whole and same else b""


# ------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class OpenedLora:
    """A LoRA of the U-Net."""

    lora: Lora


class Layouts:
    """What `kinema.checkpoints.convert` asks of a family."""

    names: tuple[str, ...] = ("sgm", "diffusers", "kohya")

    def open(self, source: Path, variant: str | None) -> Opened | OpenedLora | None:
        if source.is_dir():
            return open_folder(Source(source, variant))
        if is_lora(files.header(source)):
            return OpenedLora(read_lora(source))
        return open_own(source, variant) or open_sgm(source, variant)

    def plan(self, opened: Opened | OpenedLora, layout: str, dtype: torch.dtype | None) -> Conversion:
        if isinstance(opened, OpenedLora):
            if layout not in lora_formats.LAYOUTS:
                raise BadRequest(f"a LoRA has no layout {layout}; expected {' or '.join(lora_formats.LAYOUTS)}")
            return plan_lora(opened.lora, layout, dtype)
        if layout not in LAYOUT_NAMES:
            raise BadRequest(f"a checkpoint has no layout {layout}; expected {' or '.join(LAYOUT_NAMES)}")
        return plan_sgm(opened, dtype) if layout == "sgm" else plan_folder(opened, dtype)

    def reader(self, source: Path, variant: str | None) -> Callable[[str], Tensor] | None:
        opened = self.open(source, variant)
        return opened.read if isinstance(opened, Opened) else None


LAYOUTS = Layouts()


def plan_sgm(opened: Opened, dtype: torch.dtype | None) -> Conversion:
    """The single file. What the folder never held is written from its stand-in, or left out, and the plan says so."""
    known = table(opened.outline)
    header = _sgm_header(known, opened.ours, opened.extra)

    def make(name: str) -> Tensor:
        tensor = opened.read(name) if name in opened.extra else known.make_theirs(name, opened.read)
        return cast(tensor, dtype)

    text = opened.text if dtype is None else None
    whole = TargetFile("", cast(header, dtype), make, {"format": "pt"}, text or None)
    return Conversion((whole,), {}, _notes(known, opened))


def plan_folder(opened: Opened, dtype: torch.dtype | None) -> Conversion:
    """The folder as diffusers reads it, and what it has no place for in ``kinema_extra/``."""
    files = []
    for part, stem in folder.PARTS.items():
        own = {name: entry for name, entry in opened.ours.items() if name.startswith(f"{part}.")}
        tail = ".fp16" if dtype is torch.float16 else ""
        inner = {name.partition(".")[2]: entry for name, entry in cast(own, dtype).items()}
        make = _within(opened, part, dtype)
        files.append(TargetFile(f"{part}/{stem}{tail}.safetensors", inner, make, {"format": "pt"}))
    notes: tuple[str, ...] = ()
    if opened.extra:
        told = {"about": "Tensors of the original single file that the folder has no place for; nothing reads them."}
        if opened.text and dtype is None:
            told["original_header"] = opened.text.decode()

        def extra(name: str) -> Tensor:
            return cast(opened.read(name), dtype)

        files.append(TargetFile(f"{EXTRA}/model.safetensors", cast(opened.extra, dtype), extra, told))
        notes = (f"{len(opened.extra)} tensors that this layout has no place for are kept in {EXTRA}/",)
    return Conversion(tuple(files), folder.configs(opened.outline, opened.frames), notes)


def plan_lora(lora: Lora, layout: str, dtype: torch.dtype | None) -> Conversion:
    """One file; adapters are small enough to be made at once."""
    made, told = lora_formats.laid_out(lora, layout)
    tensors = {name: cast(tensor, dtype) for name, tensor in made.items()}
    header = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    return Conversion((TargetFile("", header, tensors.__getitem__, told),), {})


def _within(opened: Opened, part: str, dtype: torch.dtype | None) -> Callable[[str], Tensor]:
    return lambda name: cast(opened.read(f"{part}.{name}"), dtype)


def _sgm_header(known: Table, ours: Header, extra: Header) -> Header:
    """The tensors of the single file that can be written: those here, those kept, those with a stand-in."""
    header: Header = {}
    for row in known.rows:
        if row.theirs in extra:
            header[row.theirs] = extra[row.theirs]
        elif row.ours or row.stand_in:
            header[row.theirs] = (row.shape, ours[(row.ours or (row.stand_in,))[0]][1])
    return header


def _notes(known: Table, opened: Opened) -> tuple[str, ...]:
    lost = [row for row in known.rows if not row.ours and row.theirs not in opened.extra]
    copied, absent = _by_group([r for r in lost if r.stand_in]), _by_group([r for r in lost if not r.stand_in])
    notes = [f"{group} ({count} tensors) is not in the folder and was copied from vae/" for group, count in copied]
    notes += [f"{group} ({count} tensors, unused) is not in the folder and was left out" for group, count in absent]
    return tuple(notes)


def _by_group(rows: list[Row]) -> list[tuple[str, int]]:
    return [(group, sum(r.group == group for r in rows)) for group in dict.fromkeys(r.group for r in rows)]
