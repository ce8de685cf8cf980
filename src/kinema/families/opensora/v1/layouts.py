"""Files of Open-Sora 1.0 to 1.3 as their authors' code loads them, from theirs in another form and from ours.

Their one layout, ``open-sora``, is a folder of ``config.json`` and ``model.safetensors`` as on the hub; of 1.0, which
has no config, and of a codec alone it is a single file. Sources are such folders and files, pickles and files of
training (``ema.pt``), and what `kinema train` wrote. Tensors are copied bit for bit unless they are cast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinema.checkpoints.convert import NOTE, Conversion, TargetFile, cast
from kinema.checkpoints.files import Header, parse_header
from kinema.checkpoints.source import Source
from kinema.checkpoints.stream import Stream
from kinema.checkpoints.table import Read
from kinema.families.opensora.files import stdit_file, vae_1x_file
from kinema.families.opensora.files.own import open_own, part
from kinema.families.opensora.files.stdit_file import StditFile
from kinema.families.opensora.stdit.config import PATCH, STDiTConfig
from kinema.families.opensora.v1.config import Config
from kinema.schema import BadRequest
from kinema.values import counted

LAYOUT = "open-sora"
FILE = "model.safetensors"
TRANSFORMER, CODEC = "transformer", "vae"


@dataclass(frozen=True)
class Opened:
    """A transformer's or a codec's tensors under their published names, and its config.json; none for a single file."""

    where: str
    header: Header
    read: Read
    config: dict[str, Any]
    text: bytes = b""
    """The header of the file that these tensors came from, if they are all of it or were once."""
    notes: tuple[str, ...] = ()


class FirstLineLayouts:
    """What `kinema.checkpoints.convert` asks of a line."""

    names: tuple[str, ...] = (LAYOUT,)

    def open(self, source: Path, variant: str | None) -> Opened | None:
        seen = Source(source, variant)
        if seen.pipeline:
            return None
        if "kinema" in seen.metadata:
            return _open_own(seen)
        given = seen.config("") if source.is_dir() else {}
        if (file := stdit_file.recognise(seen.header, given)) is not None:
            return _transformer(seen, file, given)
        codec = vae_1x_file.recognise(seen.header, given)
        if codec is None or codec.kind == "image":
            return None
        codec.check(seen.header, source.name)
        stream = Stream(source, variant)
        return Opened(source.name, stream.header, stream.__getitem__, given, _first_text(stream))

    def plan(self, opened: Opened, layout: str, dtype: torch.dtype | None) -> Conversion:
        if layout != LAYOUT:
            raise BadRequest(f"{opened.where} is of Open-Sora 1.x, which has no layout {layout}; expected {LAYOUT}")
        file = _target(opened, FILE if opened.config else "", dtype)
        return Conversion((file,), {"config.json": opened.config} if opened.config else {}, opened.notes)

    def reader(self, source: Path, variant: str | None) -> Callable[[str], Tensor] | None:
        """Tensors as the network has them."""
        opened = self.open(source, variant)
        return None if opened is None else lambda name: opened.read(name.removeprefix(f"{TRANSFORMER}."))


LAYOUTS = FirstLineLayouts()


def _first_text(stream: Stream) -> bytes:
    return stream.metadata[NOTE].encode() if NOTE in stream.metadata else stream.text


def _transformer(source: Source, file: StditFile, given: dict[str, Any]) -> Opened:
    file.check(source.header, source.path.name)
    stream = Stream(source.path, source.variant)
    names = {name: row.foreign for name, (row, _) in file.table.by_native.items()}
    header = {name: stream.header[foreign] for name, foreign in names.items()}
    tables = len(stream.header) - len(header)
    notes = (f"left out {counted(tables, 'table')} of positions, which the network computes",) if tables else ()
    config = given or written(file.config)
    return Opened(source.path.name, header, lambda name: stream[names[name]], config, _first_text(stream), notes)


def _open_own(source: Source) -> Opened | None:
    """A file that `kinema train` wrote; None for one of another model."""
    if (found := open_own(source, Config)) is None:
        return None
    config, stream = found
    header = part(stream, TRANSFORMER)
    StditFile(config.stdit).check(header, source.path.name)
    settings = written(config.stdit)
    notes = _lost(config.stdit, header, settings)
    if part(stream, CODEC):
        notes = (*notes, "the VAE is a separate file in this layout, and left out")
    return Opened(source.path.name, header, lambda name: stream[f"{TRANSFORMER}.{name}"], settings, b"", notes)


def _lost(had: STDiTConfig, header: Header, settings: dict[str, Any]) -> tuple[str, ...]:
    """A note of the settings that the layout has no place for, since they are as published there."""
    found = stdit_file.recognise(header, settings)
    assert found is not None
    read = asdict(found.config)
    lost = [f"{name} {value}" for name, value in asdict(had).items() if read[name] != value]
    return (f"settings that are in no file of this layout are left out: {', '.join(lost)}",) if lost else ()


def written(config: STDiTConfig) -> dict[str, Any]:
    """The ``config.json`` of a transformer; empty for 1.0, whose code reads none."""
    if config.version == "1.0":
        return {}
    name = "STDiT2" if config.version == "1.1" else "STDiT3"
    extra: dict[str, Any] = {"qk_norm_legacy": config.rotate_first} if config.version == "1.1" else {}
    if config.version == "1.3":
        extra = {
            "kernel_size": None if config.window is None else [*config.window, -1],
            "use_spatial_rope": config.spatial_rope,
        }
    return {
        "architectures": [name],
        "model_type": name,
        "input_size": [None, None, None],
        "input_sq_size": config.side,
        "in_channels": config.channels,
        "patch_size": [1, PATCH, PATCH],
        "hidden_size": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp,
        "pred_sigma": config.variance,
        "caption_channels": config.text,
        "model_max_length": config.tokens,
        "qk_norm": config.qk_norm,
        **extra,
    }


def _target(opened: Opened, path: str, dtype: torch.dtype | None) -> TargetFile:
    """The weight file, with the header of an earlier file where that lists exactly these tensors."""
    header = cast(opened.header, dtype)
    if opened.text and parse_header(opened.text, "the header that was kept")[0] == header:
        return TargetFile(path, header, opened.read, {}, opened.text)
    metadata = {"format": "pt"} | ({NOTE: opened.text.decode()} if opened.text and dtype is None else {})
    return TargetFile(path, header, lambda name: cast(opened.read(name), dtype), metadata)
