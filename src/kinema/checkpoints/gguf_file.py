"""GGUF, the format of ggml: quantised models of Stable Diffusion, read one tensor at a time.

The header is parsed here, within limits: the reader of the ``gguf`` package trusts the counts in a file. That package
knows the quantisations (`gguf.dequantize`). Two layouts: whole checkpoints (stable-diffusion.cpp), and the U-Net alone
(ComfyUI-GGUF), which stores convolutions flattened, their shapes in ``comfy.gguf.orig_shape.*``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinema.bounds import printable, quoted
from kinema.checkpoints.storage import Header
from kinema.schema import BadRequest

SUFFIX = ".gguf"
MAX_HEADER = 16 * 2**20
"""Limit on the bytes of a header; image models stay under 1 MiB."""
MAX_TENSORS, MAX_SETTINGS = 100_000, 100_000
MAX_AXES, MAX_NAME = 8, 512
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
INSTALL = "reading GGUF files needs the gguf package: pip install 'kinema[gguf]'"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
"""Format of `struct` of each type of number, by ggml's number of the type."""
_PLAIN = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
}  # fmt: skip
"""Types that are not quantised, by ggml's name."""


@dataclass(frozen=True)
class Entry:
    """One tensor: its shape, its ggml type, and the bytes in the file that hold it."""

    shape: tuple[int, ...]
    kind: Any
    begin: int
    size: int

    @property
    def dtype(self) -> torch.dtype:
        """The dtype it is read as: float32 for quantised values, which are products of two halves."""
        return _PLAIN.get(self.kind.name, torch.float32)


@dataclass(frozen=True)
class Gguf:
    """A checked header: all tensors are inside the file and do not overlap."""

    file: Path
    entries: Mapping[str, Entry]
    metadata: dict[str, str]
    """Settings that are text, such as ``general.architecture``."""

    @property
    def header(self) -> Header:
        return {name: (entry.shape, entry.dtype) for name, entry in self.entries.items()}

    @staticmethod
    def read(file: Path) -> Gguf:
        """Read the header. Raises `BadRequest` for a file that is damaged, or without the gguf package."""
        size = file.stat().st_size
        with file.open("rb") as opened:
            cursor = _Cursor(opened.read(min(size, MAX_HEADER)), file.name)
        if cursor.bytes(4) != b"GGUF":
            raise BadRequest(f"{file.name} is not a GGUF file: it does not begin with GGUF")
        if (version := cursor.number("I")) not in _VERSIONS:
            raise BadRequest(f"{file.name} has GGUF version {version}; expected 2 or 3, little-endian")
        tensors, settings = cursor.number("Q"), cursor.number("Q")
        for what, count, most in (("tensors", tensors, MAX_TENSORS), ("settings", settings, MAX_SETTINGS)):
            if count > most:
                raise BadRequest(f"{file.name} lists {count:,} {what}; expected at most {most:,}")
        values = dict(_setting(cursor) for _ in range(settings))
        infos = [_info(cursor) for _ in range(tensors)]
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment not in (2**n for n in range(3, 17)):
            raise BadRequest(f"{file.name} has the alignment {quoted(alignment)}; expected a power of two from 8")
        begin = -(-cursor.at // alignment) * alignment
        metadata = {name: value for name, value in values.items() if isinstance(value, str)}
        return Gguf(file, _entries(file.name, infos, values, begin, size), metadata)

    def is_quantised(self, name: str) -> bool:
        return self.entries[name].kind.name not in _PLAIN

    def tensor(self, name: str, widened: torch.dtype = torch.float32) -> Tensor:
        """Read one tensor; a quantised one is dequantised to ``widened``."""
        import numpy as np
        from gguf import dequantize

        entry = self.entries[name]
        with self.file.open("rb") as opened:
            opened.seek(entry.begin)
            data = bytearray(opened.read(entry.size))
        if len(data) != entry.size:
            raise BadRequest(f"{self.file.name} is cut short: it ends within the tensor {printable(name)}")
        if entry.kind.name in _PLAIN:
            flat = torch.frombuffer(data, dtype=entry.dtype) if data else torch.empty(0, dtype=entry.dtype)
        else:
            flat = torch.from_numpy(dequantize(np.frombuffer(data, np.uint8), entry.kind)).to(widened)
        return flat.reshape(entry.shape)


class _Cursor:
    """Reads numbers and text from the beginning of a file."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name, self.at = data, name, 0

    def bytes(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            reason = "is longer than allowed" if len(self.data) == MAX_HEADER else "is cut short or damaged"
            raise BadRequest(f"{self.name} is not a valid GGUF file: its header {reason}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.bytes(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        data = self.bytes(self.number("Q"))
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise BadRequest(f"{self.name} is not a valid GGUF file: its header has text that is not UTF-8") from error


def _setting(cursor: _Cursor) -> tuple[str, Any]:
    name, kind = cursor.text(), cursor.number("I")
    return name, _value(cursor, kind, name, nested=False)


def _value(cursor: _Cursor, kind: int, name: str, *, nested: bool) -> Any:
    if kind == _STRING:
        return cursor.text()
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    if kind != _ARRAY or nested:
        what = "a list of lists" if kind == _ARRAY else f"the unknown type {kind}"
        raise BadRequest(f"{cursor.name} has {what} in its setting {quoted(name)}")
    inner, count = cursor.number("I"), cursor.number("Q")
    if inner in _SCALARS:
        width = struct.calcsize(_SCALARS[inner])
        data = cursor.bytes(count * width)
        return struct.unpack(f"<{count}{_SCALARS[inner]}", data) if count <= MAX_AXES else ()
    for _ in range(count):  # each takes at least 8 bytes of the header, which ends
        _value(cursor, inner, name, nested=True)
    return ()


def _info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Read (name, shape, type, offset); ggml lists the axes from the last."""
    name, axes = cursor.text(), cursor.number("I")
    if axes > MAX_AXES or len(name) > MAX_NAME:
        raise BadRequest(f"{cursor.name} has a damaged header at {quoted(name)}: expected at most {MAX_AXES} axes")
    shape = tuple(cursor.number("Q") for _ in range(axes))[::-1]
    return name, shape, cursor.number("I"), cursor.number("Q")


def _entries(
    where: str, infos: list[tuple[str, tuple[int, ...], int, int]], settings: Mapping[str, Any], begin: int, size: int
) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for name, shape, kind, offset in infos:
        if name in found:
            raise BadRequest(f"{where} has the tensor {quoted(name)} twice")
        known, block, width = _kind(where, name, kind)
        count = math.prod(shape)
        if count % block or (shape and shape[-1] % block):
            raise BadRequest(f"{where} has {quoted(name)} of shape {list(shape)} in {known.name}, blocks of {block}")
        found[name] = Entry(_shape(where, name, shape, settings), known, begin + offset, count // block * width)
    end = begin
    for name, entry in sorted(found.items(), key=lambda item: item[1].begin):
        if entry.begin < end or entry.begin + entry.size > size:
            what = "overlaps another tensor" if entry.begin < end else f"ends after the file's {size:,} bytes"
            raise BadRequest(f"{where} is cut short or damaged: {quoted(name)} {what}")
        end = entry.begin + entry.size
    return found


def _shape(where: str, name: str, shape: tuple[int, ...], settings: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape before a converter flattened the tensor."""
    original = settings.get(ORIGINAL_SHAPE + name)
    if original is None:
        return shape
    whole = isinstance(original, tuple) and all(type(n) is int and n > 0 for n in original)
    if not whole or math.prod(original) != math.prod(shape):
        raise BadRequest(
            f"{where} states the original shape {quoted(original)} for {quoted(name)}, which has {list(shape)}"
        )
    return original


def _kind(where: str, name: str, number: int) -> tuple[Any, int, int]:
    """Return (ggml's type, values of a block, bytes of a block)."""
    try:
        import numpy as np
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
    except ImportError as error:
        raise BadRequest(f"{where}: {INSTALL}") from error
    try:
        kind = GGMLQuantizationType(number)
        block, width = GGML_QUANT_SIZES[kind]
        if kind.name not in _PLAIN:
            dequantize(np.zeros(width, np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise BadRequest(f"{where} has {quoted(name)} in the ggml type {number}, which is not supported") from error
    return kind, block, width
