"""Transformers and codecs from layout to layout and back, one tensor at a time.

Layouts: ``open-sora`` (separate layers, half-split rotary layout: as published), ``fused`` (Open-Sora's fused layers,
half-split), ``flux`` (fused, adjacent, without conditioning: as Flux's own code loads it) and ``diffusers`` (a folder;
or of a codec alone, a folder of one network); those of LoRAs are in `lora`. Every file keeps the header of the file
that it was converted from, so that the way back gives that file byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinema.checkpoints import lora_convert
from kinema.checkpoints.convert import NOTE, Conversion, TargetFile, cast
from kinema.checkpoints.files import Header, parse_header
from kinema.checkpoints.lora_convert import OpenedLora
from kinema.checkpoints.settings import validated
from kinema.checkpoints.source import Source
from kinema.checkpoints.stream import Stream
from kinema.families.opensora.config import Config
from kinema.families.opensora.files import folder, lora, opening, transformer_file, vae_file
from kinema.families.opensora.files.own import open_own, part
from kinema.families.opensora.files.transformer_file import ROPE_NOTE, Kind, Rope, TransformerFile
from kinema.families.opensora.files.vae_file import VaeFile
from kinema.families.opensora.mmdit import MMDiTConfig
from kinema.schema import BadRequest

LAYOUTS_OF: dict[str, tuple[Kind, Rope]] = {
    "open-sora": ("separate", "half"),
    "fused": ("fused", "half"),
    "flux": ("fused", "adjacent"),
    "diffusers": ("diffusers", "adjacent"),
}
COND, GUIDANCE = ("cond_in.weight", "cond_in.bias"), "guidance_in."


@dataclass(frozen=True)
class Network:
    """Headers under our names without data, a way to read one tensor, and headers of the files it comes from."""

    native: Header
    read: Callable[[str], Tensor]
    texts: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Opened:
    """What a source holds: a transformer, a codec, or both. The transformer's rotary layout is "half"."""

    where: str
    transformer: Network | None = None
    config: MMDiTConfig | None = None
    vae: Network | None = None
    codec: VaeFile | None = None


class Layouts:
    """What `kinema.checkpoints.convert` asks of a family."""

    names: tuple[str, ...] = (*LAYOUTS_OF, "kohya")

    def open(self, source: Path, variant: str | None) -> Opened | OpenedLora | None:
        seen = Source(source, variant)
        if (adapter := lora.open_lora(seen)) is not None:
            return adapter
        if seen.pipeline:
            return _open_folder(seen) if seen.pipeline == opening.PIPELINE else None
        if "kinema" in seen.metadata:
            return _open_own(seen)
        vae = vae_file.recognise(seen.header, seen.config(""))
        if vae is not None:
            return Opened(source.name, vae=_vae(seen, vae), codec=vae)
        file = transformer_file.recognise(seen.header, seen.metadata, "half")
        if file is None:
            return None
        return _with_vae(seen, Opened(source.name, _transformer(seen, file), file.config))

    def plan(self, opened: Opened | OpenedLora, layout: str, dtype: torch.dtype | None) -> Conversion:
        if isinstance(opened, OpenedLora):
            return lora_convert.plan(opened, layout, dtype)
        if layout == "kohya":
            raise BadRequest(f"kohya is a layout for LoRAs; expected {', '.join(LAYOUTS_OF)}")
        if layout == "diffusers":
            return _plan_folder(opened, dtype)
        if opened.transformer is None or opened.config is None:
            if layout != "open-sora":
                raise BadRequest(f"a VAE has no layout {layout}; expected open-sora (one file) or diffusers (a folder)")
            assert opened.vae is not None
            return Conversion((_as_it_is(opened.vae, "", dtype),), {})
        file, notes = _transformer_target(opened, layout, dtype)
        if opened.vae is not None:
            notes = (
                *notes,
                f"the VAE is a separate file, which is not part of layout {layout}; convert it separately",
            )
        return Conversion((file,), {}, notes)

    def reader(self, source: Path, variant: str | None) -> Callable[[str], Tensor] | None:
        """Tensors as the network has them, which keeps the file's rotary layout."""
        seen = Source(source, variant)
        if seen.pipeline:
            file, inner = opening.folder_file(seen), Source(source / opening.TRANSFORMER, variant)
        else:
            file, inner = transformer_file.recognise(seen.header, seen.metadata), seen
        if file is None:
            return None
        network, codec = _transformer(inner, file), source / opening.CODEC
        vae = Stream(codec, variant) if seen.pipeline and codec.is_dir() else {}
        parts = {opening.TRANSFORMER: network.read, opening.CODEC: vae.__getitem__}

        def read(name: str) -> Tensor:
            part, _, inner = name.partition(".")
            return parts[part](inner)

        return read


LAYOUTS = Layouts()


# ---------------------------------------------------------------------------------------- opening


def _stream(source: Source) -> tuple[Stream, tuple[bytes, ...]]:
    stream = Stream(source.path, source.variant)
    return stream, tuple(filter(None, (stream.text, stream.metadata.get(NOTE, "").encode())))


def _transformer(source: Source, file: TransformerFile) -> Network:
    stream, texts = _stream(source)
    file.check({name: shape for name, (shape, _) in stream.header.items()}, source.path.name)
    validated(file.config, f"the sizes of {source.path}")
    return Network(file.ours_header(stream.header), lambda name: file.make_native(name, stream.__getitem__), texts)


def _vae(source: Source, vae: VaeFile) -> Network:
    stream, texts = _stream(source)
    vae.check(stream.header, source.path.name)
    return Network(stream.header, stream.__getitem__, texts)


def _with_vae(source: Source, opened: Opened) -> Opened:
    """A transformer's file with the VAE next to it."""
    assert opened.config is not None
    there = opening.beside(source.path, "dc-ae" if opened.config.patch == 1 else "hunyuan").get("vae")
    if there is None or not opened.config.conditioned:
        return opened
    inner = Source(there)
    vae = vae_file.recognise(inner.header, {})
    if vae is None or vae.latent != opened.config.channels:
        return opened
    return replace(opened, vae=_vae(inner, vae), codec=vae)


def _open_folder(source: Source) -> Opened:
    found = opening.open_source(source)
    file = opening.folder_file(source)
    assert found is not None
    assert file is not None
    file = replace(file, here="half")
    inner = Source(source.path / opening.TRANSFORMER, source.variant)
    opened = Opened(source.path.name, _transformer(inner, file), file.config)
    if opening.CODEC not in found.parts:
        return opened
    codec = Source(source.path / opening.CODEC, source.variant)
    vae = vae_file.recognise(codec.header, source.config(opening.CODEC))
    assert vae is not None
    return replace(opened, vae=_vae(codec, vae), codec=vae)


def _open_own(source: Source) -> Opened | None:
    """A file that `kinema train` wrote; None for one of another model."""
    if (found := open_own(source, Config)) is None:
        return None
    config, stream = found
    file = TransformerFile(config.transformer, "separate", "half")

    def network(name: str) -> Network:
        return Network(part(stream, name), lambda each: stream[f"{name}.{each}"])

    transformer, vae = network(opening.TRANSFORMER), network(opening.CODEC)
    codec = VaeFile(config.vae, config.hunyuan, config.dc_ae)
    file.check({name: shape for name, (shape, _) in transformer.native.items()}, source.path.name)
    codec.check(vae.native, source.path.name)
    turned = Network(transformer.native, lambda name: file.make_native(name, transformer.read))
    return Opened(source.path.name, turned, config.transformer, vae, codec)


# ---------------------------------------------------------------------------------------- writing


def _transformer_target(opened: Opened, layout: str, dtype: torch.dtype | None) -> tuple[TargetFile, tuple[str, ...]]:
    """The transformer's file, and notes of what the layout has no place for."""
    assert opened.transformer is not None
    assert opened.config is not None
    kind, rope = LAYOUTS_OF[layout]
    conditioned = layout != "flux"
    config = replace(opened.config, rope=rope, conditioned=conditioned, guided=opened.config.guided and not conditioned)
    file, notes = TransformerFile(config, kind, "half"), _lost(opened.config, config)
    foreign = file.theirs_header(_completed(opened.transformer.native, config))

    def native(name: str) -> Tensor:
        assert opened.transformer is not None
        if name in opened.transformer.native:
            return opened.transformer.read(name)
        like = opened.transformer.native["img_in.weight"][1]
        return torch.zeros(file.native[name], dtype=like)  # cond_in of a model that had none

    return _target(opened.transformer, foreign, lambda name: file.make_foreign(name, native), dtype, rope), notes


def _completed(header: Header, config: MMDiTConfig) -> Header:
    """Our header with ``cond_in`` where the config has it."""
    if not config.conditioned or COND[0] in header:
        return header
    dtype = header["img_in.weight"][1]
    shape = (config.width, config.features + config.patch**2)
    return header | {COND[0]: (shape, dtype), COND[1]: (shape[:1], dtype)}


def _lost(had: MMDiTConfig, has: MMDiTConfig) -> tuple[str, ...]:
    notes = []
    if had.guided and not has.guided:
        notes.append("guidance_in (4 tensors), the input for a guidance scale, is not part of Open-Sora 2.0; left out")
    if has.conditioned and not had.conditioned:
        notes.append("cond_in (2 tensors), the input for conditioning, is all zero until it is trained")
    if had.conditioned and not has.conditioned:
        notes.append("cond_in (2 tensors), the input for conditioning, is not part of Flux; left out")
    return tuple(notes)


def _target(
    network: Network, header: Header, make: Callable[[str], Tensor], dtype: torch.dtype | None, rope: Rope | None
) -> TargetFile:
    """A single file; with the header of an earlier file where that lists exactly these tensors."""
    for text in network.texts if dtype is None else ():
        kept, metadata = parse_header(text, "the header that was kept")
        if kept == header and metadata.get(ROPE_NOTE, rope) == rope:
            return TargetFile("", header, make, {}, text)
    metadata = {"format": "pt"} | ({ROPE_NOTE: rope} if rope else {})
    if network.texts and dtype is None:
        metadata[NOTE] = network.texts[-1].decode()
    return TargetFile("", cast(header, dtype), lambda name: cast(make(name), dtype), metadata)


def _as_it_is(network: Network, path: str, dtype: torch.dtype | None) -> TargetFile:
    return replace(_target(network, network.native, network.read, dtype, None), path=path)


def _plan_folder(opened: Opened, dtype: torch.dtype | None) -> Conversion:
    """The folder as diffusers lays it out; of a codec alone, the folder of that network."""
    stem = f"{folder.STEM}{'.fp16' if dtype is torch.float16 else ''}.safetensors"
    if opened.transformer is None or opened.config is None:
        assert opened.vae is not None
        assert opened.codec is not None
        return Conversion((_as_it_is(opened.vae, stem, dtype),), {"config.json": folder.vae(opened.codec)})
    if not opened.config.conditioned:
        raise BadRequest(f"{opened.where} is in Flux's layout; convert it to open-sora first, then that to diffusers")
    file, notes = _transformer_target(opened, "diffusers", dtype)
    files = [replace(file, path=f"{opening.TRANSFORMER}/{stem}")]
    texts: dict[str, Any] = {
        "model_index.json": folder.index(opened.codec),
        f"{opening.TRANSFORMER}/config.json": folder.transformer(opened.config),
    }
    if opened.vae is None or opened.codec is None:
        notes = (*notes, "no VAE was found next to the file, so the folder holds the transformer alone")
    else:
        files.append(_as_it_is(opened.vae, f"{opening.CODEC}/{stem}", dtype))
        texts[f"{opening.CODEC}/config.json"] = folder.vae(opened.codec)
    if opened.codec is not None and opened.codec.kind == "dc-ae":
        notes = (*notes, "diffusers has no class for the Video DC-AE; its tensors keep their own names")
    return Conversion(tuple(files), texts, notes)
