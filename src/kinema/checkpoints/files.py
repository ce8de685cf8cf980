"""Weight files, read safely and written whole.

safetensors is read through a memory map after its header has been checked against the file; PyTorch's
own files only with ``weights_only=True``, never anything else. A folder with an index, or with one
weight file among others, reads like a file.
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
from kinema.bounds import MAX_QUOTED, few, printable, quoted
from kinema.checkpoints.pickles import SUFFIXES, read_pickle
from kinema.schema import BadRequest

WEIGHTS = (".safetensors", *SUFFIXES)
"""How a weight file's name ends."""
RUN_OPTIONS = "options.json"
"""What a training run was asked for; a folder without it is no run's."""
MAX_HEADER = 16 * 2**20
"""Bytes of a safetensors header: the largest known models stay under one MiB."""
MAX_ENTRIES = 100_000
MAX_AXES = 16
MAX_NAME = 255
LENGTH, ALIGNED = 8, 16
"""Bytes before the header, which tell its length, and what tensors that are written begin at multiples of."""
WHOLE = 2**30
"""Files up to here are hashed whole; larger ones by their size, header, head and tail."""

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

Header = dict[str, tuple[tuple[int, ...], torch.dtype]]


# ----------------------------------------------------------------------------------------- reading


def header(path: str | Path, variant: str | None = None) -> Header:
    """Names, shapes and dtypes of all tensors, without reading one of them."""
    found: Header = {}
    for file in weight_files(path, variant):
        if file.suffix == ".safetensors":
            entries = {name: (e[0], e[1]) for name, e in Layout.read(file).entries.items()}
        else:
            entries = {k: (tuple(t.shape), t.dtype) for k, t in read_pickle(file, "meta").items()}
        merge(found, entries, file)
    return found


def read_tensors(path: str | Path, variant: str | None = None) -> dict[str, Tensor]:
    """All tensors of a file or folder, memory-mapped: pages are read when they are used.

    A PyTorch file may wrap its tensors as ``ema``, ``state_dict`` or ``model`` (the first there is
    wins: published results are sampled from the average); counters beside them are left out, and
    ``module.`` before every name goes. ``variant`` picks ``name.fp16.safetensors`` and the like in a folder.
    Raises `BadRequest` for a file that is missing, cut short, hostile, or holds code.
    """
    found: dict[str, Tensor] = {}
    for file in weight_files(path, variant):
        merge(found, _read_safetensors(file) if file.suffix == ".safetensors" else read_pickle(file, "cpu"), file)
    return found


def metadata(path: str | Path, variant: str | None = None) -> dict[str, str]:
    """The text a safetensors file carries beside its tensors; empty for other formats."""
    told: dict[str, str] = {}
    for file in weight_files(path, variant):
        if file.suffix == ".safetensors":
            told |= Layout.read(file).metadata
    return told


def weight_hash(path: str | Path, variant: str | None = None) -> str:
    """A name for exactly these weights; what was hashed is its prefix.

    ``sha256:`` the whole file; ``sha256-parts:`` of a file over 1 GiB its size, header and the first
    and last 16 MiB; ``sha256-shards:`` the names and hashes of several files.
    """
    files = weight_files(path, variant)
    if len(files) == 1:
        return _hash(files[0])
    lines = "".join(f"{file.name} {_hash(file)}\n" for file in files)
    return f"sha256-shards:{hashlib.sha256(lines.encode()).hexdigest()}"


def fill(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Give a model, usually built on the meta device, exactly these tensors, without a copy.

    Every key must be there, none may be left over and every shape must agree; otherwise a `BadRequest`
    names ``where`` and the first few. Parameters take the dtype of the file.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    wrong = [
        f"{name} is {_shape(tensors[name])}, expected {_shape(expected[name])}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    whole = [
        f"{name} is {tensors[name].dtype}"
        for name in expected
        if name in tensors and expected[name].is_floating_point() and not tensors[name].is_floating_point()
    ]
    told = (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", wrong),
        ("not floating-point", whole),
    )
    faults = [f"{len(names)} {what} ({few(names)})" for what, names in told if names]
    if faults:
        raise BadRequest(f"{where} does not fit this model: {'; '.join(faults)}")
    model.load_state_dict(dict(tensors), strict=True, assign=True)
    hollow = [name for name, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if hollow:
        raise RuntimeError(f"{few(hollow)} are not in the state dict and stayed on the meta device: make them there")


# ----------------------------------------------------------------------------------------- writing


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all; the same tensors give the same bytes.

    Tensors that share memory are written each for itself. Raises `BadRequest` where the folder is
    missing or not writable, or the disk is full; the file that was there stays.
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
    """`write_tensors` with each tensor made when its turn comes, so that one is in memory at a time.

    ``text`` is the header of an earlier file, written as it is: its order, its spelling and its metadata.
    """
    names, told = _laid_out(header, metadata) if text is None else (_order(text), text)
    with replacing(Path(path)) as part, part.open("wb") as file:
        file.write(struct.pack("<Q", len(told)) + told)
        for name in names:
            tensor = make(name)
            if (tuple(tensor.shape), tensor.dtype) != header[name]:
                raise RuntimeError(f"{name} was promised as {header[name]} and is {tensor.shape}, {tensor.dtype}")
            file.write(tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _laid_out(header: Header, metadata: Mapping[str, str] | None) -> tuple[list[str], bytes]:
    # Whole multiples of ALIGNED first, so that they begin at such: the last bits of a product can depend on where its
    # weight begins (MKL on AMD). Then wide types, so that each is aligned to its own size, which a memory map needs.
    size = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in header.items()}
    names = sorted(header, key=lambda name: (size[name] % ALIGNED != 0, -header[name][1].itemsize, name))
    table: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for name in names:
        shape, dtype = header[name]
        if dtype not in _NAMES:
            raise ValueError(f"{name} is {dtype}, which safetensors cannot hold")
        table[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + size[name]]}
        at += size[name]
    told = json.dumps(table, separators=(",", ":")).encode()
    return names, told + b" " * (-(len(told) + LENGTH) % ALIGNED)


def _order(text: bytes) -> list[str]:
    table = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
    return sorted(table, key=lambda name: table[name]["data_offsets"])


# ------------------------------------------------------------------------------------ finding files


def weight_files(path: str | Path, variant: str | None = None) -> list[Path]:
    """The files that hold the weights of ``path``: itself, the shards of an index, or a folder's own.

    In a folder an index comes first, then safetensors, then PyTorch's files; without ``variant`` the
    plain names are taken, or the only variant there is; of a training run its ``model.safetensors``. Raises
    `BadRequest` where there is none, or a choice.
    """
    path = Path(path)
    if path.is_dir():
        return _of_folder(path, variant)
    if not path.exists():
        raise BadRequest(f"there is no weight file {path}")
    if not bounds.is_regular(path):
        raise BadRequest(f"{path} is not a regular file; expected weights")
    if path.suffix == ".json":
        return _of_index(path)
    if path.suffix not in WEIGHTS:
        raise BadRequest(f"{path.name} is no weight file; expected .safetensors, {', '.join(SUFFIXES)} or a folder")
    return [path]


def _of_folder(folder: Path, variant: str | None) -> list[Path]:
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    if variant is None and {RUN_OPTIONS, "model.safetensors"} <= set(names):
        return [folder / "model.safetensors"]  # a training run: its result, among checkpoints and best weights
    for kind in (r"\.safetensors", "|".join(re.escape(s) for s in SUFFIXES)):
        # model.safetensors, model.fp16.safetensors; model.safetensors.index.json, …index.fp16.json
        single = re.compile(rf"(?P<stem>[^.]+?)(?:\.(?P<variant>\w+))?(?:{kind})")
        index = re.compile(rf"(?P<stem>[^.]+)(?:{kind})\.index(?:\.(?P<variant>\w+))?\.json")
        found = [(m["variant"], name) for name in names if (m := index.fullmatch(name))]
        sharded = {kind for kind, _ in found}
        whole = [(m["variant"], name) for name in names if (m := single.fullmatch(name)) and not _is_shard(name)]
        found += [(kind, name) for kind, name in whole if kind not in sharded]
        if found:
            chosen = folder / _choose(folder, found, variant)
            return _of_index(chosen) if chosen.suffix == ".json" else [chosen]
    raise BadRequest(f"the folder {folder} holds no weights; expected a .safetensors file, its index or a pipeline")


def _is_shard(name: str) -> bool:
    return re.search(r"-\d+-of-\d+\.", name) is not None


def _choose(folder: Path, found: list[tuple[str | None, str]], variant: str | None) -> str:
    kinds = sorted({kind for kind, _ in found if kind}, key=str)
    if variant is None and all(kind for kind, _ in found) and len(kinds) == 1:
        variant = kinds[0]
    names = [name for kind, name in found if kind == variant]
    if not names:
        there = ", ".join(kinds) or "only plain files"
        raise BadRequest(f"the folder {folder} has no weights of the variant {variant or 'plain'!r}; there is {there}")
    if len(names) > 1:
        raise BadRequest(f"the folder {folder} holds {len(names)} weight files ({few(names)}); name the one to load")
    return names[0]


def _of_index(path: Path) -> list[Path]:
    """The shards an index names, all of them in its own folder and all of them there."""
    told = bounds.from_json(bounds.read_bytes(path, MAX_HEADER, "an index of weights"), path.name)
    try:
        shards = sorted(set(told["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise BadRequest(f"{path.name} is not an index of weights: expected a weight_map of names to files") from error
    files = []
    for name in shards:
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or len(name) > MAX_NAME:
            raise BadRequest(f"{path.name} points outside its folder ({quoted(name)}); expected plain file names")
        files.append(path.parent / name)
    absent = [file.name for file in files if not file.is_file()]
    if absent or not files:
        raise BadRequest(f"{path.name} names {len(files)} files and {len(absent)} are missing ({few(absent)})")
    return files


# -------------------------------------------------------------------------------------- safetensors


class Layout:
    """A checked safetensors header: every tensor lies inside the file, none overlaps another."""

    def __init__(
        self, file: Path, text: bytes, entries: dict[str, tuple[tuple[int, ...], torch.dtype, int, int]], told: dict
    ) -> None:
        self.file, self.text, self.entries, self.metadata = file, text, entries, told
        self.begin = 8 + len(text)

    @staticmethod
    def read(file: Path) -> Layout:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = struct.unpack("<Q", opened.read(8))[0] if size >= 8 else 0
            if size < 8 or length < 2:
                raise BadRequest(f"{file.name} is not a safetensors file: it holds {size} bytes and no header")
            if length > MAX_HEADER:
                raise BadRequest(
                    f"{file.name} is not a safetensors file, or a hostile one: its header claims {length:,} bytes"
                )
            if 8 + length > size:
                raise BadRequest(f"{file.name} is cut short: its header needs {8 + length:,} bytes of {size:,}")
            text = opened.read(length)
        table = _parse(file.name, text)
        told = _metadata(file.name, table)
        if len(table) > MAX_ENTRIES:
            raise BadRequest(f"{file.name} lists {len(table):,} tensors; at most {MAX_ENTRIES:,} are read")
        entries = {name: _entry(file.name, name, entry) for name, entry in table.items()}
        _check_extent(file, entries, size - 8 - length)
        return Layout(file, text, entries, told)


def listed(text: bytes, where: str) -> tuple[Header, dict[str, str]]:
    """What the text of a header lists, and its metadata, where the file itself is not at hand; raises `BadRequest`."""
    table = _parse(where, text)
    told = _metadata(where, table)
    return {name: _entry(where, name, entry)[:2] for name, entry in table.items()}, told


def _metadata(where: str, table: dict[str, Any]) -> dict[str, str]:
    """Taken out of the table of a header."""
    told = table.pop("__metadata__", {})
    if not isinstance(told, dict) or not all(isinstance(v, str) for v in told.values()):
        raise BadRequest(f"{where} has metadata that is not text")
    return told


def _parse(where: str, text: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ValueError("a name twice")
        return made

    table = bounds.from_json(text, f"the header of {where}", pairs=once)
    if not isinstance(table, dict):
        raise BadRequest(f"{where} has a damaged header: it is not the list of tensors expected")
    return table


def _entry(where: str, name: str, entry: Any) -> tuple[tuple[int, ...], torch.dtype, int, int]:
    """(shape, dtype, begin, end) of one tensor, its byte count checked before anything is allocated."""
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
            f"{where} holds {quoted(name)} as {printable(kind, MAX_QUOTED)}; expected one of {', '.join(DTYPES)}"
        )
    if math.prod(shape) * DTYPES[kind].itemsize != end - begin:
        told = f"{end - begin:,} bytes, and its shape {quoted(list(shape))} needs others"
        raise BadRequest(f"{where} gives {quoted(name)} {told}")
    return shape, DTYPES[kind], begin, end


def _check_extent(file: Path, entries: Mapping[str, tuple], size: int) -> None:
    at = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != at:
            raise BadRequest(f"{file.name} has a damaged header: {quoted(name)} begins at {begin:,}, expected {at:,}")
        at = end
    if at > size:
        raise BadRequest(f"{file.name} is cut short: its tensors need {at:,} bytes and {size:,} are there")
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
    """Put a shard's entries to those of the shards before. Raises BadRequest where one is in both."""
    twice = [name for name in new if name in found]
    if twice:
        raise BadRequest(f"{file.name} holds {len(twice)} tensors that another shard holds too ({few(twice)})")
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
