"""SVD's weight files: recognition, renaming of tensors, and conversion between the single file and the folder.

The folder contains less than the single file, which has two VAEs (one encodes the image, one decodes the video) and
remnants of CLIP's text encoder. Conversion to a folder keeps these and the file's header in ``kinema_extra/``, so that
converting back reproduces the file byte for byte.
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
from kinema.checkpoints.files import Header, parse_header
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
"""Indices 0, 1, 2, … that transformers before 4.31 saved with the weights."""


@dataclass(frozen=True)
class Opened:
    """A weight file of either layout with native tensor names: headers, and a function that reads one tensor."""

    outline: Outline
    native: Header
    extra: Header
    """Tensors of the single file without a native name, by their sgm names."""
    read: Callable[[str], Tensor]
    where: str
    frames: int
    text: bytes = b""
    """The header of the single file, or of the one this was converted from; empty if unknown."""


# ------------------------------------------------------------------------------- recognising


def recognise(header: Header) -> Outline | None:
    """Read the sizes of an sgm single file of SVD or SV3D from its keys and shapes; None for any other file.

    Frames, steps and guidance are not in the weights. Raises `BadRequest` naming a missing tensor that is needed to
    determine the sizes.
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
    """Identify the published model: by its sizes, and by name among models of equal sizes (svd, svd-xt, svd-xt-1.1)."""
    if outline.kind == "sv3d":
        return "sv3d-p" if outline.vector % 5 == 0 else "sv3d-u"
    name_words = words(name)
    if "xt" not in name_words:
        return "svd"
    return "svd-xt-1.1" if ("1", "1") in pairwise(name_words) else "svd-xt"


def words(name: str) -> list[str]:
    """Split a file's name into words: ``svd_xt.fp16`` into svd, xt and fp16."""
    return re.split(r"[_.\-\s]+", name.lower())


def sized(preset: Config, outline: Outline) -> Config:
    """Return a published model's config with the sizes of this network.

    Weights do not determine the number of heads: a head has 64 channels in the U-Net and 80 in CLIP, as published, or
    the largest divisor of these that fits a smaller network. Raises `BadRequest` for an unsupported network.
    """
    attention = (*(True for _ in outline.widths[1:]), False)
    checks = {
        "in_channels": (outline.in_channels, 2 * outline.latent),
        "out_channels": (outline.out_channels, outline.latent),
        "transformer layers": (outline.depth, 1),
        "levels with attention": (_indices(outline.attention), _indices(attention)),
    }
    differences = [
        f"{name} {found}, expected {expected}" for name, (found, expected) in checks.items() if found != expected
    ]
    if differences:
        raise BadRequest(f"this Stable Video Diffusion network is not supported: {'; '.join(differences)}")
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


def _indices(flags: tuple[bool, ...]) -> str:
    return " ".join(str(i) for i, flag in enumerate(flags) if flag) or "none"


# ---------------------------------------------------------------------------------- loading


def from_sgm(outline: Outline, tensors: Mapping[str, Tensor], where: str = "this file") -> dict[str, Tensor]:
    """Rename a single file's tensors to ``unet.…``, ``vae.…`` and ``image_encoder.…``, as views where possible.

    Raises `BadRequest` naming missing and unexpected keys.
    """
    return table(outline).forward(tensors, where)


def open_sgm(path: Path, variant_name: str | None = None) -> Opened | None:
    """Open a single file, checked from its header alone; None if it is not SVD's."""
    source = Stream(path, variant_name)
    outline = recognise(source.header)
    if outline is None:
        return None
    mapping = table(outline)
    mapping.check_foreign(shapes_of(source.header), path.name)
    native = {
        name: (shape, source.header[mapping.by_native[name][0].foreign][1]) for name, shape in mapping.native.items()
    }
    extra = {name: entry for name, entry in source.header.items() if not mapping.by_foreign[name].native}

    def read(name: str) -> Tensor:
        return source[name] if name in extra else mapping.make_native(name, source.__getitem__)

    frames = PRESETS[variant(outline, path.stem)].frames
    return Opened(outline, native, extra, read, path.name, frames, source.text)


def open_own(path: Path, variant_name: str | None = None) -> Opened | None:
    """Open a file that `kinema train` wrote, checked from its header alone; None if it is not SVD's."""
    found = read_own(path, variant_name)
    if found is None:
        return None
    outline, source, frames = found
    return Opened(outline, dict(source.header), {}, source.__getitem__, path.name, frames)


def open_folder(source: Source) -> Opened | None:
    """Open a diffusers folder, checked from its configs and headers alone; None if it is not SVD's.

    Raises `BadRequest` for a folder that lacks a part or whose tensors do not match its configs.
    """
    configs = folder.read_configs(source)
    if configs is None:
        return None
    path = source.path
    sources = {part: Stream(path / part, source.variant) for part in folder.PARTS}
    native = without_position_ids(
        {f"{part}.{name}": entry for part, stream in sources.items() for name, entry in stream.header.items()}
    )
    extras = Stream(path / EXTRA) if (path / EXTRA).is_dir() else None
    outline = _with_extra(folder.outline(configs), extras)
    mapping = table(outline)
    mapping.check_native(shapes_of(native), path.name)

    def read(name: str) -> Tensor:
        if extras is not None and name in extras:
            return extras[name]
        part, _, inner = name.partition(".")
        return sources[part][inner]

    extra = extras.header if extras is not None else {}
    _check_extra(mapping, extra, f"{path.name}/{EXTRA}")
    text = _kept_text(extras, mapping, native) if extras is not None else b""
    return Opened(outline, native, extra, read, path.name, folder.frames(configs), text)


def without_position_ids(named: Mapping[str, T]) -> dict[str, T]:
    """Drop the position indices that older CLIP files contain."""
    return {name: value for name, value in named.items() if name != _POSITION_IDS}


def _with_extra(outline: Outline, extras: Stream | None) -> Outline:
    """Add the sizes that only the tensors in ``kinema_extra/`` determine."""
    if extras is None:
        return outline
    shapes = shapes_of(extras.header)
    vocabulary, width = shapes.get(f"{CLIP}token_embedding.weight", (outline.vocabulary, outline.text_width))
    length = shapes.get(f"{CLIP}positional_embedding", (outline.text_length,))[0]
    return replace(outline, vocabulary=vocabulary, text_width=width, text_length=length)


def _check_extra(mapping: Table, extra: Header, where: str) -> None:
    aside = Table(row for row in mapping.rows if not row.native)
    aside.check_foreign(shapes_of(extra), where)


def _kept_text(extras: Stream, mapping: Table, native: Header) -> bytes:
    """Return the original file's header if it lists exactly the present tensors."""
    text = extras.metadata.get("original_header", "").encode()
    if not text:
        return b""
    original, _ = parse_header(text, "the header of the original file")
    now = _sgm_header(mapping, native, extras.header)
    whole = all(row.foreign in original for row in mapping.rows if row.native or row.foreign in extras.header)
    same = all(now.get(name) == entry for name, entry in original.items())
    return text if whole and same else b""


# ------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class OpenedLora:
    """A LoRA of the U-Net."""

    lora: Lora


class Layouts:
    """SVD's layouts for `kinema.checkpoints.convert`."""

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
    """Plan the single file. Tensors missing in the folder are copied from equivalents or left out, with a note."""
    mapping = table(opened.outline)
    header = _sgm_header(mapping, opened.native, opened.extra)

    def make(name: str) -> Tensor:
        tensor = opened.read(name) if name in opened.extra else mapping.make_foreign(name, opened.read)
        return cast(tensor, dtype)

    text = opened.text if dtype is None else None
    whole = TargetFile("", cast(header, dtype), make, {"format": "pt"}, text or None)
    return Conversion((whole,), {}, _notes(mapping, opened))


def plan_folder(opened: Opened, dtype: torch.dtype | None) -> Conversion:
    """Plan a diffusers folder, with the tensors it does not support in ``kinema_extra/``."""
    files = []
    for part, stem in folder.PARTS.items():
        own = {name: entry for name, entry in opened.native.items() if name.startswith(f"{part}.")}
        tail = ".fp16" if dtype is torch.float16 else ""
        inner = {name.partition(".")[2]: entry for name, entry in cast(own, dtype).items()}
        make = _within(opened, part, dtype)
        files.append(TargetFile(f"{part}/{stem}{tail}.safetensors", inner, make, {"format": "pt"}))
    notes: tuple[str, ...] = ()
    if opened.extra:
        metadata = {"about": "Tensors of the original single file that diffusers does not use."}
        if opened.text and dtype is None:
            metadata["original_header"] = opened.text.decode()

        def extra(name: str) -> Tensor:
            return cast(opened.read(name), dtype)

        files.append(TargetFile(f"{EXTRA}/model.safetensors", cast(opened.extra, dtype), extra, metadata))
        notes = (f"{len(opened.extra)} tensors that this layout does not support are kept in {EXTRA}/",)
    return Conversion(tuple(files), folder.configs(opened.outline, opened.frames), notes)


def plan_lora(lora: Lora, layout: str, dtype: torch.dtype | None) -> Conversion:
    """Plan one LoRA file; its tensors are small enough to convert in memory."""
    converted, metadata = lora_formats.lora_tensors(lora, layout)
    tensors = {name: cast(tensor, dtype) for name, tensor in converted.items()}
    header = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    return Conversion((TargetFile("", header, tensors.__getitem__, metadata),), {})


def _within(opened: Opened, part: str, dtype: torch.dtype | None) -> Callable[[str], Tensor]:
    return lambda name: cast(opened.read(f"{part}.{name}"), dtype)


def _sgm_header(mapping: Table, native: Header, extra: Header) -> Header:
    """Header of the single file that can be written: present tensors, kept ones, and those with a stand-in."""
    header: Header = {}
    for row in mapping.rows:
        if row.foreign in extra:
            header[row.foreign] = extra[row.foreign]
        elif row.native or row.stand_in:
            header[row.foreign] = (row.shape, native[(row.native or (row.stand_in,))[0]][1])
    return header


def _notes(mapping: Table, opened: Opened) -> tuple[str, ...]:
    lost = [row for row in mapping.rows if not row.native and row.foreign not in opened.extra]
    copied, absent = _by_group([r for r in lost if r.stand_in]), _by_group([r for r in lost if not r.stand_in])
    notes = [f"{group} ({count} tensors) is not in the folder and was copied from vae/" for group, count in copied]
    notes += [f"{group} ({count} tensors, unused) is not in the folder and was left out" for group, count in absent]
    return tuple(notes)


def _by_group(rows: list[Row]) -> list[tuple[str, int]]:
    return [(group, sum(r.group == group for r in rows)) for group in dict.fromkeys(r.group for r in rows)]
