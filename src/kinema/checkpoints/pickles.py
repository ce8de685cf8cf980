"""PyTorch's own files: tensors and plain data, and nothing that could run.

A file is measured before torch reads it: what it unpacks to is what lies on the disk, and what builds the objects is
short.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from kinema.bounds import MAX_QUOTED, few, printable, quoted
from kinema.schema import BadRequest

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
_WRAPPERS = ("ema", "state_dict", "model", "controlnet")
_TABLES = ("image_proj", "ip_adapter")
"""Tables of tensors that make one file together (IP-Adapter's): read as ``image_proj.…`` and ``ip_adapter.…``."""
_NOTES = ("animatediff_config",)
"""Names of what is no tensor, which published files carry and nothing needs."""
_LOOKED_AT = 2**20
"""Bytes of a refused pickle that are searched for the name of what it wanted to run."""
MAX_PICKLE = 16 * 2**20
"""Bytes of what describes the tensors: published files have a few hundred thousand."""
MAX_OPCODES = 2_000_000
_ENTRIES = 100_000
_DIRECTORY = 128 * _ENTRIES
"""Bytes of a zip's list of entries: each takes 46 and its name."""
_PICKLES = 5
"""In a row at the start of a file from before PyTorch 1.6; numbers follow."""
_MAKES_BYTES = ("bytearray", "builtins bytearray", "__builtin__ bytearray")
"""As pickles name the one thing that torch lets them make of a number alone: so many zeros."""
_SHARED = 8
"""How often tensors may share the numbers of a file, as tied weights do."""


def read_pickle(file: Path, device: str) -> dict[str, Tensor]:
    """Tensors of a ``torch.save`` file, memory-mapped where its age allows it; device "meta" reads no data.

    Raises `BadRequest` for a file that is empty, damaged, holds no tensors, or holds code: that is
    named and never run. There is no way to ask for less care.
    """
    if file.stat().st_size == 0:
        raise BadRequest(f"{file.name} is empty (0 bytes); expected weights")
    _measure(file)
    try:
        try:
            held = torch.load(file, map_location=device, weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            # Files from before PyTorch 1.6 are no zip and cannot be mapped.
            held = torch.load(file, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise BadRequest(_refusal(file, str(error))) from error
    except Exception as error:  # the parser of a damaged pickle raises whatever its bytes lead it to
        raise BadRequest(f"{file.name} cannot be read: it is cut short, damaged, or no weight file") from error
    return _plain(file, _unwrap(file, held))


# ------------------------------------------------------------------------------- before it is read


def _measure(file: Path) -> None:
    """Refuse a file that would take more to read than it holds; what is damaged otherwise, torch finds."""
    with file.open("rb") as opened:
        try:
            if opened.read(4) == b"PK\3\4":
                _measure_zip(file, opened)
            else:
                opened.seek(0)
                _measure_pickles(file, opened, _PICKLES)
        except BadRequest:
            raise
        except Exception:  # as below: bytes that are no zip and no pickle lead anywhere
            return


def _measure_zip(file: Path, opened: IO[bytes]) -> None:
    size = opened.seek(0, 2)
    opened.seek(max(0, size - 2**16 - 128))
    tail = opened.read()
    end, wide = tail.rfind(b"PK\5\6"), tail.rfind(b"PK\6\6")
    told = [tail[end + 12 : end + 16], tail[wide + 40 : wide + 48] if wide >= 0 else b""]
    if any(_DIRECTORY < int.from_bytes(each, "little") < 2 ** (8 * len(each)) - 1 for each in told):
        raise BadRequest(f"{file.name} lists more than {_ENTRIES:,} entries, which no weight file does")
    with zipfile.ZipFile(opened) as archive:
        entries = archive.infolist()
        if len(entries) > _ENTRIES:
            raise BadRequest(f"{file.name} lists {len(entries):,} entries; at most {_ENTRIES:,} are read")
        packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        if packed or sum(entry.file_size for entry in entries) > size:
            raise BadRequest(f"{file.name} is compressed, which PyTorch never does; unpack it, or get .safetensors")
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                with archive.open(entry) as described:
                    _measure_pickles(file, described, 1)


def _measure_pickles(file: Path, opened: IO[bytes], many: int) -> None:
    left, limited = MAX_OPCODES, _Limited(opened, file.name)
    for _ in range(many):
        for _code, argument, _at in pickletools.genops(limited):  # type: ignore[arg-type]
            if argument in _MAKES_BYTES:
                raise BadRequest(f"{file.name} holds a bytearray, which may be of any size; expected named tensors")
            left -= 1
            if left < 0:
                raise BadRequest(f"{file.name} describes its tensors in over {MAX_OPCODES:,} steps; expected weights")


class _Limited:
    """The first bytes of a file, for a parser that would read as many as they ask for."""

    def __init__(self, opened: IO[bytes], name: str) -> None:
        self.opened, self.name, self.left = opened, name, MAX_PICKLE

    def read(self, count: int) -> bytes:
        return self._took(self.opened.read(min(count, self.left + 1)))

    def readline(self) -> bytes:
        return self._took(self.opened.readline(self.left + 1))

    def _took(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.left < 0:
            raise BadRequest(f"{self.name} describes its tensors in over {MAX_PICKLE:,} bytes; expected weights")
        return data


# ------------------------------------------------------------------------------------ what it holds


def _plain(file: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, refused where they are of a kind that no weights are or stand for more than the file holds."""
    total = 0
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise BadRequest(f"{file.name} holds {printable(name, MAX_QUOTED)} as a sparse or quantised tensor")
        size = tensor.numel() * tensor.element_size()
        total += size
        if size > tensor.untyped_storage().nbytes():
            shape = quoted(list(tensor.shape))
            raise BadRequest(
                f"{file.name} gives {printable(name, MAX_QUOTED)} the shape {shape} but stores fewer numbers"
            )
    if total > _SHARED * file.stat().st_size:
        raise BadRequest(f"{file.name} holds tensors of {total:,} bytes in all, many times what the file does")
    return tensors


def _refusal(file: Path, said: str) -> str:
    found = re.search(r"(?:GLOBAL|class|global:?)\s+([\w.]+\.[\w.]+)", said)
    name = printable(found[1] if found else _first_global(file) or "", MAX_QUOTED)
    if not name:
        return f"{file.name} cannot be read: it is damaged, or holds more than tensors, which is refused"
    return (
        f"{file.name} holds Python code ({name}), which is refused because loading would run it; "
        "get the weights as .safetensors"
    )


def _first_global(file: Path) -> str | None:
    """The first name that a bare pickle would import, found by reading its opcodes, not by running them."""
    with file.open("rb") as opened:
        head = opened.read(_LOOKED_AT)
    texts: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(head):
            if opcode.name == "GLOBAL":
                return str(argument).replace(" ", ".")
            if opcode.name == "STACK_GLOBAL":
                return ".".join(texts[-2:])
            if isinstance(argument, str):
                texts.append(argument)
    except Exception:  # as above: not a pickle after all
        return None
    return None


def _unwrap(file: Path, held: Any) -> dict[str, Tensor]:
    for _ in range(3):
        if isinstance(held, Mapping):
            held = next((held[name] for name in _WRAPPERS if isinstance(held.get(name), Mapping)), held)
    if not isinstance(held, Mapping):
        raise BadRequest(f"{file.name} holds a {type(held).__name__}; expected named tensors")
    if held and all(name in _TABLES and isinstance(table, Mapping) for name, table in held.items()):
        held = {f"{name}.{inner}": value for name, table in held.items() for inner, value in table.items()}
    tensors = {str(name): value for name, value in held.items() if isinstance(value, Tensor)}
    nested = [str(k) for k, value in held.items() if isinstance(value, Mapping) and value and k not in _NOTES]
    if nested or not tensors:
        raise BadRequest(f"{file.name} holds {few(nested) if nested else 'no tensors'}; expected named tensors")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors
