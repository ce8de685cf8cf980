"""PyTorch's own files, restricted to tensors and plain data: nothing that could run code.

A file is checked before torch reads it: it must not unpack to more than its size, and its pickle must be short.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from kinema.bounds import MAX_QUOTED, first_names, printable, quoted
from kinema.checkpoints.storage import TABLES
from kinema.schema import BadRequest

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
_TABLES = ("image_proj", "ip_adapter")
"""Tables of tensors in one file (IP-Adapter), read as ``image_proj.…`` and ``ip_adapter.…``."""
_IGNORED = ("animatediff_config",)
"""Nested tables in published files that are not tensors and not needed."""
_SEARCHED = 2**20
"""Bytes of a refused pickle that are searched for the name of the code in it."""
MAX_PICKLE = 16 * 2**20
"""Limit on the bytes of a pickle; published files have a few hundred thousand."""
MAX_OPCODES = 2_000_000
_ENTRIES = 100_000
_DIRECTORY = 128 * _ENTRIES
"""Limit on the bytes of a zip's central directory: 46 for each entry and its name."""
_PICKLES = 5
"""Consecutive pickles at the start of a file from before PyTorch 1.6; the data follows."""
_BYTEARRAYS = ("bytearray", "builtins bytearray", "__builtin__ bytearray")
"""Names in pickles of the only type allowed by torch that allocates memory from just an integer."""
_PARAMETER_DICT = "torch.nn.modules.container.ParameterDict"
_ALLOWING = threading.Lock()
"""Held while torch's own list of allowed names has one more: the list belongs to the process."""
_SHARED = 8
"""Limit on the bytes of all tensors relative to the file: tied weights share storage."""


def read_pickle(file: Path, device: str) -> dict[str, Tensor]:
    """Return the tensors of a ``torch.save`` file, memory-mapped if its format allows; device "meta" reads no data.

    Raises `BadRequest` for a file that is empty, damaged, without tensors, or contains code, which is
    named and never run. There is deliberately no way to turn this check off.
    """
    return check_tensors(file, _unwrap(file, read_content(file, device)))


def read_content(file: Path, device: str) -> Any:
    """Return what a ``torch.save`` file contains, tensors and plain data in any nesting; raises as `read_pickle` does.

    The tensors' layouts and shapes are unchecked (`check_tensors`).
    """
    if file.stat().st_size == 0:
        raise BadRequest(f"{file.name} is empty (0 bytes); expected a weight file")
    _check_size(file)
    try:
        try:
            content = _load(file, device)
        except pickle.UnpicklingError as error:
            if _PARAMETER_DICT not in str(error):
                raise
            with _ALLOWING, torch.serialization.safe_globals([(_ParameterTable, _PARAMETER_DICT)]):
                content = _load(file, device)
    except pickle.UnpicklingError as error:
        raise BadRequest(_refusal(file, str(error))) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise BadRequest(f"{file.name} cannot be read: it is cut short, damaged or not a weight file") from error
    return content


def _load(file: Path, device: str) -> Any:
    try:
        return torch.load(file, map_location=device, weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
        # Files from before PyTorch 1.6 are not zip archives and cannot be mapped.
        return torch.load(file, map_location=device, weights_only=True)


class _ParameterTable(dict[str, Tensor]):
    """What a ``ParameterDict`` in a pickle is read as: its parameters, and nothing else that the pickle states of it.

    Textual inversion's first embeddings have one. The class of that name is never made, so its state sets no attribute.
    """

    def __setstate__(self, state: Any) -> None:
        """Take the parameters. Raises ValueError for a state that has none."""
        parameters = state.get("_parameters") if type(state) is dict else None
        if not isinstance(parameters, dict):
            raise ValueError("a ParameterDict without parameters")
        self.update({str(name): value for name, value in parameters.items() if isinstance(value, Tensor)})


# ---------------------------------------------------------------------------- checks before reading


def _check_size(file: Path) -> None:
    """Raise BadRequest for a file that expands when it is read; torch reports other damage."""
    with file.open("rb") as opened:
        try:
            if opened.read(4) == b"PK\3\4":
                _check_zip(file, opened)
            else:
                opened.seek(0)
                _check_pickles(file, opened, _PICKLES)
        except BadRequest:
            raise
        except Exception:  # as above: random bytes can raise anything
            return


def _check_zip(file: Path, opened: IO[bytes]) -> None:
    size = opened.seek(0, 2)
    opened.seek(max(0, size - 2**16 - 128))
    tail = opened.read()
    end, wide = tail.rfind(b"PK\5\6"), tail.rfind(b"PK\6\6")
    sizes = [tail[end + 12 : end + 16], tail[wide + 40 : wide + 48] if wide >= 0 else b""]
    if any(_DIRECTORY < int.from_bytes(field, "little") < 2 ** (8 * len(field)) - 1 for field in sizes):
        raise BadRequest(f"{file.name} lists more than {_ENTRIES:,} entries; expected a weight file")
    with zipfile.ZipFile(opened) as archive:
        entries = archive.infolist()
        if len(entries) > _ENTRIES:
            raise BadRequest(f"{file.name} lists {len(entries):,} entries; expected at most {_ENTRIES:,}")
        packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        if packed or sum(entry.file_size for entry in entries) > size:
            raise BadRequest(
                f"{file.name} is compressed; expected an uncompressed file, as PyTorch writes, or .safetensors"
            )
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                with archive.open(entry) as content:
                    _check_pickles(file, content, 1)


def _check_pickles(file: Path, opened: IO[bytes], count: int) -> None:
    left, limited = MAX_OPCODES, _Limited(opened, file.name)
    for _ in range(count):
        for _code, argument, _at in pickletools.genops(limited):  # type: ignore[arg-type]
            if argument in _BYTEARRAYS:
                raise BadRequest(
                    f"{file.name} contains a bytearray, which could be of any size; expected named tensors"
                )
            left -= 1
            if left < 0:
                raise BadRequest(f"{file.name} has a pickle of over {MAX_OPCODES:,} opcodes; expected a weight file")


class _Limited:
    """A reader of the first bytes of a file, for a parser that would read as much as the file claims."""

    def __init__(self, opened: IO[bytes], name: str) -> None:
        self.opened, self.name, self.left = opened, name, MAX_PICKLE

    def read(self, count: int) -> bytes:
        return self._count(self.opened.read(min(count, self.left + 1)))

    def readline(self) -> bytes:
        return self._count(self.opened.readline(self.left + 1))

    def _count(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.left < 0:
            raise BadRequest(f"{self.name} has a pickle of over {MAX_PICKLE:,} bytes; expected a weight file")
        return data


# ----------------------------------------------------------------------------------------- content


def check_tensors(file: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors; raises BadRequest for sparse or quantised ones, and for shapes larger than their storage."""
    total = 0
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise BadRequest(
                f"{file.name} has a sparse or quantised tensor, {printable(name, MAX_QUOTED)}; expected dense ones"
            )
        size = tensor.numel() * tensor.element_size()
        total += size
        if size > tensor.untyped_storage().nbytes():
            shape = quoted(list(tensor.shape))
            raise BadRequest(
                f"{file.name} stores fewer values for {printable(name, MAX_QUOTED)} than its shape {shape} needs"
            )
    if total > _SHARED * file.stat().st_size:
        raise BadRequest(
            f"{file.name} has tensors of {total:,} bytes in total, many times its own size; expected weights"
        )
    return tensors


def _refusal(file: Path, reason: str) -> str:
    found = re.search(r"(?:GLOBAL|class|global:?)\s+([\w.]+\.[\w.]+)", reason)
    name = printable(found[1] if found else _first_global(file) or "", MAX_QUOTED)
    if not name:
        return (
            f"{file.name} cannot be read: it is damaged, or contains more than tensors; get the weights as .safetensors"
        )
    return f"{file.name} contains Python code ({name}), which loading would run; get the weights as .safetensors"


def _first_global(file: Path) -> str | None:
    """Return the first name that a bare pickle would import, by reading its opcodes without running them."""
    with file.open("rb") as opened:
        head = opened.read(_SEARCHED)
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


def _unwrap(file: Path, content: Any) -> dict[str, Tensor]:
    for _ in range(3):
        if isinstance(content, Mapping):
            content = next((content[name] for name in TABLES if isinstance(content.get(name), Mapping)), content)
    if not isinstance(content, Mapping):
        raise BadRequest(f"{file.name} contains a {type(content).__name__}; expected named tensors")
    if content and all(name in _TABLES and isinstance(table, Mapping) for name, table in content.items()):
        content = {f"{name}.{inner}": value for name, table in content.items() for inner, value in table.items()}
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    nested = [str(k) for k, value in content.items() if isinstance(value, Mapping) and value and k not in _IGNORED]
    if nested:
        raise BadRequest(f"{file.name} contains nested tables ({first_names(nested)}); expected named tensors")
    if not tensors:
        raise BadRequest(f"{file.name} contains no tensors; expected named tensors")
    return tensors
