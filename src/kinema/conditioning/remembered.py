"""Text embeddings on disk, so that a prompt is read by a large encoder once: bounded, and safe to delete.

Under ``$KINEMA_CACHE`` (else ``$XDG_CACHE_HOME/kinema``, ``~/.cache/kinema``) there is one safetensors file a prompt,
named by a hash of the prompt, the encoder's files and all settings. ``kinema cache`` lists and clears it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kinema.atomic import replacing
from kinema.checkpoints import files
from kinema.checkpoints.files import Header
from kinema.schema import BadRequest
from kinema.values import quoted

MOST = 2 * 2**30
"""Bytes kept unless ``$KINEMA_CACHE_BYTES`` says otherwise; a prompt of Open-Sora 2.0 takes 8 MiB in float32."""
SUFFIX = ".safetensors"


def root() -> Path:
    """The folder of everything that is remembered."""
    if own := os.environ.get("KINEMA_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kinema"


def folder() -> Path:
    return root() / "text"


def most() -> int:
    """The bound in bytes. Raises BadRequest for a variable that is not a number."""
    value = os.environ.get("KINEMA_CACHE_BYTES", str(MOST))
    if not value.isdecimal():
        raise BadRequest(f"KINEMA_CACHE_BYTES is {quoted(value)}; expected a number of bytes, 0 for none")
    return int(value)


def key(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def fingerprint(paths: Sequence[Path]) -> list[list[Any]]:
    """What identifies weight files without reading them: name, size, time of change, and the blob's name in the hub's
    cache, which is a hash of its content."""
    found = []
    for path in paths:
        stat, real = path.stat(), path.resolve()
        blob = real.name if real.parent.name == "blobs" else ""
        found.append([path.name, stat.st_size, 0 if blob else stat.st_mtime_ns, blob])
    return found


def get(name: str, header: Header) -> dict[str, Tensor] | None:
    """The tensors under this key; None where there are none.

    A file that is damaged, or whose tensors do not have these names, shapes and dtypes, is deleted.
    """
    path = folder() / f"{name}{SUFFIX}"
    if not path.is_file():
        return None
    try:
        tensors = {each: tensor.clone() for each, tensor in files.read_tensors(path).items()}
        os.utime(path)  # the least recently used go first
        if {each: (tuple(tensor.shape), tensor.dtype) for each, tensor in tensors.items()} != header:
            raise BadRequest(f"{path} does not contain what is kept under its name")
    except (BadRequest, OSError):
        path.unlink(missing_ok=True)
        return None
    return tensors


def put(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Keep tensors under this key. A folder that cannot be written is no error: the next run reads the prompt again."""
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > most():
        return
    try:
        folder().mkdir(parents=True, exist_ok=True)
        path = folder() / f"{name}{SUFFIX}"
        with replacing(path, flush=False) as part:
            files.write_tensors(part, {each: x.detach().cpu().contiguous() for each, x in tensors.items()}, {})
        tidy(most())
    except (OSError, BadRequest):
        return


@dataclass(frozen=True)
class Size:
    """Number of prompts in the cache, and their bytes."""

    prompts: int
    bytes: int


def size() -> Size:
    found = _files()
    return Size(len(found), sum(stat for _, stat, _ in found))


def tidy(limit: int) -> None:
    """Delete the least recently used until what is left fits in ``limit`` bytes."""
    found = sorted(_files())
    total = sum(length for _, length, _ in found)
    for _, length, path in found:
        if total <= limit:
            return
        path.unlink(missing_ok=True)
        total -= length


def _files() -> list[tuple[float, int, Path]]:
    """(last use, bytes, path) of each file; those that go away meanwhile are left out."""
    found = []
    for path in folder().glob(f"*{SUFFIX}") if folder().is_dir() else ():
        try:
            stat = path.stat()
        except OSError:
            continue
        found.append((stat.st_mtime, stat.st_size, path))
    return found
