"""Weight files: safe reading, atomic writing.

A safetensors file is memory-mapped after its header has been checked against the file; PyTorch's own files are
only ever loaded with ``weights_only=True``; GGUF is dequantised. A folder with an index, or with a single weight file,
reads like a file. `kinema.checkpoints.storage` has the one rule for prefixes of names and for scaled weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kinema import bounds
from kinema.atomic import replacing
from kinema.bounds import MAX_QUOTED, first_names, printable, quoted
from kinema.checkpoints import gguf_file
from kinema.checkpoints.gguf_file import Gguf
from kinema.checkpoints.pickles import SUFFIXES, read_pickle
from kinema.checkpoints.storage import Header, View, view
from kinema.schema import BadRequest
from kinema.values import counted

WEIGHTS = (".safetensors", *SUFFIXES, gguf_file.SUFFIX)
"""Suffixes of weight files."""
RUN_OPTIONS = "options.json"
"""The settings of a training run; marks a folder as a run's."""
MAX_HEADER = 16 * 2**20
"""Limit on the bytes of a safetensors header; the largest known models stay under 1 MiB."""
MAX_ENTRIES = 100_000
MAX_AXES = 16
MAX_NAME = 255
LENGTH, ALIGNED = 8, 16
"""Bytes of the length field before the header, and the alignment in bytes of the tensors that we write."""
WHOLE = 2**30
"""Files of up to this many bytes are hashed completely; larger ones by size, header, head and tail."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_BLOCK = 16 * 2**20


# ----------------------------------------------------------------------------------------- reading


def header(path: str | Path, variant: str | None = None) -> Header:
    """Return names, shapes and dtypes of all tensors without reading any data."""
    return viewed(path, variant).header


def viewed(path: str | Path, variant: str | None = None) -> View:
    """Return how the tensors are named and stored, without reading any data."""
    raw: Header = {}
    for file in weight_files(path, variant):
        merge(raw, raw_header(file), file)
    return view(raw, Path(path).name)


def read_tensors(
    path: str | Path, variant: str | None = None, widened: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Return all tensors of a file or folder, memory-mapped: pages are read on first use.

    Tables of a training checkpoint, prefixes that all names share, and scaled weights are resolved as
    `kinema.checkpoints.storage` says; counters next to the tensors are skipped. ``variant`` selects files such as
    ``name.fp16.safetensors`` in a folder. Quantised and scaled weights become ``widened``, one at a time. Raises
    `BadRequest` for a file that is missing, cut short or hostile, or that contains code.
    """
    raw: dict[str, Tensor] = {}
    for file in weight_files(path, variant):
        merge(raw, _read_raw(file, widened), file)
    seen = view({name: (tuple(tensor.shape), tensor.dtype) for name, tensor in raw.items()}, Path(path).name)
    return {name: seen.tensor(name, raw.__getitem__, widened) for name in seen.header}


def narrow(path: str | Path, variant: str | None = None) -> set[str]:
    """Return the names of quantised and scaled weights, which are stored in 8 bits or fewer and read as more."""
    found = set(viewed(path, variant).scales)
    quantised = [Gguf.read(file) for file in weight_files(path, variant) if file.suffix == gguf_file.SUFFIX]
    seen = viewed(path, variant).stored if quantised else {}
    raw = {name for each in quantised for name in each.entries if each.is_quantised(name)}
    return found | {name for name, stored in seen.items() if stored in raw}


def raw_header(file: Path) -> Header:
    """Return names, shapes and dtypes as the file has them; those of a GGUF file are what it is dequantised to."""
    if file.suffix == ".safetensors":
        return {name: (e[0], e[1]) for name, e in Layout.read(file).entries.items()}
    if file.suffix == gguf_file.SUFFIX:
        return Gguf.read(file).header
    return {name: (tuple(t.shape), t.dtype) for name, t in read_pickle(file, "meta").items()}


def _read_raw(file: Path, widened: torch.dtype) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    if file.suffix == gguf_file.SUFFIX:
        opened = Gguf.read(file)
        return {name: opened.tensor(name, widened) for name in opened.entries}
    return read_pickle(file, "cpu")


def metadata(path: str | Path, variant: str | None = None) -> dict[str, str]:
    """Return the metadata of safetensors files and the text settings of GGUF files; empty for PyTorch's own."""
    found: dict[str, str] = {}
    for file in weight_files(path, variant):
        if file.suffix == ".safetensors":
            found |= Layout.read(file).metadata
        elif file.suffix == gguf_file.SUFFIX:
            found |= Gguf.read(file).metadata
    return found


def weight_hash(path: str | Path, variant: str | None = None) -> str:
    """Return a hash that identifies these weights; its prefix states what was hashed.

    ``sha256:`` the whole file; ``sha256-parts:`` the size, the header and the first and last 16 MiB of a file over
    1 GiB; ``sha256-shards:`` the names and hashes of several files.
    """
    files = weight_files(path, variant)
    if len(files) == 1:
        return _hash(files[0])
    lines = "".join(f"{file.name} {_hash(file)}\n" for file in files)
    return f"sha256-shards:{hashlib.sha256(lines.encode()).hexdigest()}"


def fill(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load exactly these tensors into a model, usually built on the meta device, without copying.

    Raises `BadRequest`, starting with ``where`` and naming the first few keys, if any is missing, unexpected or of the
    wrong shape. Parameters take the dtype of the file.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    wrong = [
        f"{name} is {_shape(tensors[name])}, expected {_shape(expected[name])}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    integers = [
        f"{name} is {tensors[name].dtype}"
        for name in expected
        if name in tensors and expected[name].is_floating_point() and not tensors[name].is_floating_point()
    ]
    found = (
        ("missing", missing),
        ("unexpected", unexpected),
        ("with the wrong shape", wrong),
        ("not floating-point", integers),
    )
    faults = [f"{len(names)} {fault} ({first_names(names)})" for fault, names in found if names]
    if faults:
        raise BadRequest(f"{where} does not fit this model: {'; '.join(faults)}")
    model.load_state_dict(dict(tensors), strict=True, assign=True)
    unfilled = [name for name, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if unfilled:
        raise RuntimeError(
            f"{first_names(unfilled)} are not in the state dict and still on the meta device; create them on a real one"
        )


# ----------------------------------------------------------------------------------------- writing


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically; the same tensors always give the same bytes.

    Tensors that share memory are written separately. Raises `BadRequest` if the folder is missing or not
    writable or the disk is full; an existing file is then kept.
    """
    header = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    write_streamed(path, header, tensors.__getitem__, metadata)


def write_streamed(
    path: str | Path,
    header: Header,
    make: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
    text: bytes | None = None,
) -> None:
    """`write_tensors`, computing one tensor at a time with ``make(name)`` so that only one is in memory.

    ``text`` is the header of an earlier file, written verbatim: its order, formatting and metadata are kept.
    """
    names, encoded = _encode_header(header, metadata) if text is None else (_order(text), text)
    with replacing(Path(path)) as part, part.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in names:
            tensor = make(name)
            if (tuple(tensor.shape), tensor.dtype) != header[name]:
                raise RuntimeError(f"{name} is {tensor.shape}, {tensor.dtype}; its header states {header[name]}")
            file.write(tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _encode_header(header: Header, metadata: Mapping[str, str] | None) -> tuple[list[str], bytes]:
    # Sizes that are multiples of ALIGNED first, so that those tensors stay aligned: the last bits of a matrix product
    # can depend on the address of the weight (MKL on AMD). Then wide dtypes first: a memory map needs each tensor
    # aligned to its dtype.
    size = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in header.items()}
    names = sorted(header, key=lambda name: (size[name] % ALIGNED != 0, -header[name][1].itemsize, name))
    table: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for name in names:
        shape, dtype = header[name]
        if dtype not in _NAMES:
            raise ValueError(f"{name} is {dtype}, which safetensors cannot store")
        table[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + size[name]]}
        at += size[name]
    text = json.dumps(table, separators=(",", ":")).encode()
    return names, text + b" " * (-(len(text) + LENGTH) % ALIGNED)


def _order(text: bytes) -> list[str]:
    table = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
    return sorted(table, key=lambda name: table[name]["data_offsets"])


# ------------------------------------------------------------------------------------ finding files


def weight_files(path: str | Path, variant: str | None = None) -> list[Path]:
    """Return the weight files of ``path``: the file itself, the shards of an index, or the weights in a folder.

    In a folder, an index is preferred to a single file, safetensors to PyTorch's files, and those to GGUF. Without
    ``variant``, files without a variant suffix are chosen, or the only variant present; in a training run's folder,
    ``model.safetensors``. Raises `BadRequest` if there is no file or more than one candidate.
    """
    path = Path(path)
    if path.is_dir():
        return _of_folder(path, variant)
    if not path.exists():
        raise BadRequest(f"there is no weight file {path}")
    if not bounds.is_regular(path):
        raise BadRequest(f"{path} is not a regular file; expected a weight file")
    if path.suffix == ".json":
        return _of_index(path)
    if path.suffix not in WEIGHTS:
        raise BadRequest(f"{path.name} is not a weight file; expected {', '.join(WEIGHTS)} or a folder")
    return [path]


def _of_folder(folder: Path, variant: str | None) -> list[Path]:
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    if variant is None and {RUN_OPTIONS, "model.safetensors"} <= set(names):
        return [folder / "model.safetensors"]  # a training run's result, next to its checkpoints and best weights
    for kind in (r"\.safetensors", "|".join(re.escape(s) for s in SUFFIXES), re.escape(gguf_file.SUFFIX)):
        # model.safetensors, model.fp16.safetensors; model.safetensors.index.json, …index.fp16.json
        single = re.compile(rf"(?P<stem>[^.]+?)(?:\.(?P<variant>\w+))?(?:{kind})")
        index = re.compile(rf"(?P<stem>[^.]+)(?:{kind})\.index(?:\.(?P<variant>\w+))?\.json")
        found = [(m["variant"], name) for name in names if (m := index.fullmatch(name))]
        sharded = {kind for kind, _ in found}
        single_files = [(m["variant"], name) for name in names if (m := single.fullmatch(name)) and not _is_shard(name)]
        found += [(kind, name) for kind, name in single_files if kind not in sharded]
        if found:
            chosen = folder / _choose(folder, found, variant)
            return _of_index(chosen) if chosen.suffix == ".json" else [chosen]
    raise BadRequest(f"the folder {folder} has no weights; expected a .safetensors file, an index or a pipeline")


def _is_shard(name: str) -> bool:
    return re.search(r"-\d+-of-\d+\.", name) is not None


def _choose(folder: Path, found: list[tuple[str | None, str]], variant: str | None) -> str:
    kinds = sorted({kind for kind, _ in found if kind}, key=str)
    if variant is None and all(kind for kind, _ in found) and len(kinds) == 1:
        variant = kinds[0]
    names = [name for kind, name in found if kind == variant]
    if not names:
        missing = f"weights of the variant {variant!r}" if variant else "weights without a variant"
        raise BadRequest(f"the folder {folder} has no {missing}; its variants: {', '.join(kinds) or 'none'}")
    if len(names) > 1:
        raise BadRequest(
            f"the folder {folder} has {len(names)} weight files ({first_names(names)}); name the one to load"
        )
    return names[0]


def _of_index(path: Path) -> list[Path]:
    """Return the shards that an index names; all must exist in its own folder."""
    index = bounds.from_json(bounds.read_bytes(path, MAX_HEADER, "an index of weights"), path.name)
    try:
        shards = sorted(set(index["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise BadRequest(
            f"{path.name} is not an index of weights: expected a weight_map from tensor names to files"
        ) from error
    files = []
    for name in shards:
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or len(name) > MAX_NAME:
            raise BadRequest(
                f"{path.name} names the shard {quoted(name)}; expected the name of a file in its own folder"
            )
        files.append(path.parent / name)
    if not files:
        raise BadRequest(f"{path.name} names no shards; expected at least one")
    if absent := [file.name for file in files if not file.is_file()]:
        verb = "is" if len(absent) == 1 else "are"
        raise BadRequest(f"{path.name} names {counted(len(files), 'shard')} but {first_names(absent)} {verb} missing")
    return files


# -------------------------------------------------------------------------------------- safetensors


class Layout:
    """A checked safetensors header: all tensors are inside the file, without gaps or overlaps."""

    def __init__(
        self, file: Path, text: bytes, entries: dict[str, tuple[tuple[int, ...], torch.dtype, int, int]], metadata: dict
    ) -> None:
        self.file, self.text, self.entries, self.metadata = file, text, entries, metadata
        self.begin = 8 + len(text)

    @staticmethod
    def read(file: Path) -> Layout:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = struct.unpack("<Q", opened.read(8))[0] if size >= 8 else 0
            if size < 8 or length < 2:
                raise BadRequest(f"{file.name} is not a safetensors file: it has {size} bytes and no header")
            if length > MAX_HEADER:
                raise BadRequest(
                    f"{file.name} is not a valid safetensors file: its header claims {length:,} bytes; "
                    f"expected at most {MAX_HEADER:,}"
                )
            if 8 + length > size:
                raise BadRequest(
                    f"{file.name} is cut short: its header ends at byte {8 + length:,}, the file at {size:,}"
                )
            text = opened.read(length)
        table = _parse(file.name, text)
        metadata = _pop_metadata(file.name, table)
        if len(table) > MAX_ENTRIES:
            raise BadRequest(f"{file.name} lists {len(table):,} tensors; expected at most {MAX_ENTRIES:,}")
        entries = {name: _entry(file.name, name, entry) for name, entry in table.items()}
        _check_extent(file, entries, size - 8 - length)
        return Layout(file, text, entries, metadata)


def parse_header(text: bytes, where: str) -> tuple[Header, dict[str, str]]:
    """Parse the text of a safetensors header, without its file, to the header and metadata; raises `BadRequest`."""
    table = _parse(where, text)
    metadata = _pop_metadata(where, table)
    return {name: _entry(where, name, entry)[:2] for name, entry in table.items()}, metadata


def _pop_metadata(where: str, table: dict[str, Any]) -> dict[str, str]:
    """Remove the metadata from a header's table and return it."""
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise BadRequest(f"{where} has metadata that is not text; expected names and texts")
    return metadata


def _parse(where: str, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise ValueError("a duplicate name")
        return entries

    table = bounds.from_json(text, f"the header of {where}", pairs=unique)
    if not isinstance(table, dict):
        raise BadRequest(f"{where} has a damaged header: expected a table of tensors")
    return table


def _entry(where: str, name: str, entry: Any) -> tuple[tuple[int, ...], torch.dtype, int, int]:
    """Return (shape, dtype, begin, end) of one tensor; checks its byte count before anything is allocated."""
    try:
        shape, (begin, end), kind = tuple(entry["shape"]), entry["data_offsets"], entry["dtype"]
        sound = all(type(n) is int and n >= 0 for n in (*shape, begin, end)) and isinstance(kind, str)
        sound = sound and len(shape) <= MAX_AXES
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise BadRequest(f"{where} has a damaged header at {quoted(name)}: expected dtype, shape and data_offsets")
    if kind not in DTYPES:
        raise BadRequest(
            f"{where} has {quoted(name)} of dtype {printable(kind, MAX_QUOTED)}; expected one of {', '.join(DTYPES)}"
        )
    if math.prod(shape) * DTYPES[kind].itemsize != end - begin:
        raise BadRequest(
            f"{where} has a damaged header at {quoted(name)}: its {end - begin:,} bytes do not match its dtype {kind} "
            f"and shape {quoted(list(shape))}"
        )
    return shape, DTYPES[kind], begin, end


def _check_extent(file: Path, entries: Mapping[str, tuple], size: int) -> None:
    at = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != at:
            raise BadRequest(
                f"{file.name} has a damaged header: {quoted(name)} begins at byte {begin:,}; expected {at:,}"
            )
        at = end
    if at > size:
        raise BadRequest(f"{file.name} is cut short: its tensors need {at:,} bytes and it has {size:,}")
    if at < size:
        raise BadRequest(f"{file.name} is damaged: {size - at:,} bytes follow its last tensor")


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    names = Layout.read(file).entries
    try:
        with safe_open(str(file), framework="pt", device="cpu") as opened:
            return {name: opened.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise BadRequest(f"{file.name} cannot be read as safetensors: {error}") from error


# ------------------------------------------------------------------------------------------- shared


def merge(found: dict[str, Any], new: Mapping[str, Any], file: Path) -> None:
    """Add a shard's entries to those of earlier shards. Raises BadRequest for a duplicate."""
    duplicates = [name for name in new if name in found]
    if duplicates:
        raise BadRequest(
            f"{file.name} has {counted(len(duplicates), 'tensor')} that another shard has ({first_names(duplicates)})"
        )
    found.update(new)


def _hash(file: Path) -> str:
    size = file.stat().st_size
    whole = size <= WHOLE
    digest = hashlib.sha256() if whole else hashlib.sha256(f"{size}\n".encode())
    with file.open("rb") as opened:
        if whole:
            for block in iter(lambda: opened.read(_BLOCK), b""):
                digest.update(block)
            return f"sha256:{digest.hexdigest()}"
        length = min(struct.unpack("<Q", opened.read(8))[0], MAX_HEADER) if file.suffix == ".safetensors" else 0
        for begin, count in ((0, 8 + length + _BLOCK), (size - _BLOCK, _BLOCK)):
            opened.seek(begin)
            digest.update(opened.read(count))
    return f"sha256-parts:{digest.hexdigest()}"


def _shape(tensor: Tensor) -> str:
    return "×".join(str(n) for n in tensor.shape) or "a scalar"
