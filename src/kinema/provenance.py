"""The recipe of a clip: what `kinema replay` needs to make it again, and no more of its maker's disk than names.

A clip travels with its recipe, so files are told by name and hash, without their folders: the pictures and clips of
``request`` by name (`Request.files`) in ``inputs``, those of the family's options by their name in ``extra_inputs``.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinema import __version__, bounds, registry
from kinema.job import StageRun
from kinema.schema import BadRequest, Request
from kinema.stages import beside
from kinema.system import Family, System, name_of

MAX_INPUT = 2**36
"""Bytes of an input that are hashed: an hour of film has less."""


VERSION = 2
"""Of recipes that are written; `kinema.recipes` reads older ones."""


def recipe(works: Sequence[StageRun], noises: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """What `kinema replay` needs to make the clip again, and to say whether it is the same to the bit: the job as JSON.

    Without what `generate` adds: the hashes of the weights of each stage, and of the clip.
    """
    first = works[0]
    system, request = first.system, first.stage.request
    shown = names_of(system.family, request)
    told: dict[str, Any] = {
        "recipe": VERSION,
        "kinema": __version__,
        "stages": [_stage(work, shown) for work in works],
        "inputs": {name: file_hash(Path(file)) for name, file in request.files().items()},
        "device": str(system.device),
        "dtype": name_of(system.policy.precision),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()},
    }
    if system.compiled:
        told["compiled"] = True
    if shown:
        told["extra_inputs"] = {name: file_hash(Path(file)) for file, name in shown.items()}
    if noises:
        told["noise"] = {name: frames_hash(noise) for name, noise in noises.items()}
    return told


def _stage(work: StageRun, shown: Mapping[str, str]) -> dict[str, Any]:
    """One stage: its model, its request with files by name, and what was settled of it."""
    system = work.system
    request = named(work.stage.request, system.family, shown).with_(loras=None)
    if request.super_resolution is not None:
        request = request.with_(super_resolution=system.name)
    told = {**work.stage.to_dict(), "family": system.family.name, "request": json.loads(request.to_json())}
    if variant := system.weights.variant or system.weights.model:
        told["variant"] = variant
    if system.loras.files:
        told["loras"] = [file.told() for file in system.loras.files]
    if system.weights.added:
        told["added"] = [each.told() for each in system.weights.added]
    if system.overrides:
        told["overrides"] = dict(system.overrides)
    return told


def paths(system: System, request: Request) -> dict[str, str]:
    """Where the files of a recipe lie, by the names that it has for them: kept only for a user who asks for it."""
    told = {"model": system.weights.path} if system.weights.path else {}
    told |= {f"added {each.slot}": each.source.path for each in system.weights.added}
    told |= {f"lora {number}": file.path for number, file in enumerate(system.loras.files, 1)}
    if request.super_resolution is not None and (upper := beside(system, request.super_resolution).weights.path):
        told["super_resolution"] = upper
    told |= {name: Path(file) for name, file in request.files().items()}
    told |= {name: Path(file) for file, name in names_of(system.family, request).items()}
    return {name: str(path.absolute()) for name, path in told.items()}


# ------------------------------------------------------------------------------------- the names


def names(files: Iterable[str]) -> dict[str, str]:
    """Each of these files to a name without folders that no other of them has: ``a/x.png`` and ``b/x.png`` are
    ``x.png`` and ``x-2.png``.
    """
    told: dict[str, str] = {}
    for file in files:
        name = registry.file_name(file)
        stem, point, suffix = name.rpartition(".")
        count = 1
        while name in told.values():
            count += 1
            name = f"{stem}-{count}.{suffix}" if point else f"{suffix}-{count}"
        told.setdefault(file, name)
    return told


def names_of(family: Family, request: Request) -> dict[str, str]:
    """The names of the files in a family's options, such that they are taken for files in their turn."""
    told = names(family.sampling.files(request))
    again = family.sampling.files(named(request, family, told))
    return told if set(again) == set(told.values()) else {file: f"./{name}" for file, name in told.items()}


def named(request: Request, family: Family, shown: Mapping[str, str]) -> Request:
    """The request with the names of its files in their place; ``shown`` are those of the family's options."""
    own = {name: registry.file_name(file) for name, file in request.files().items()}
    return replaced(request, [family], own, shown)


def replaced(request: Request, families: Iterable[Family], own: Mapping[str, str], shown: Mapping[str, str]) -> Request:
    """The request with these files of its own (by what `Request.files` calls them), and these for files that the
    ``extra`` of any of the families names: other values stay as they are, also where they spell the same.
    """
    extra = {
        key: _with(value, {file: shown[file] for family in families for file in _files(family, key, value)})
        for key, value in request.extra.items()
    }
    return request.with_files(own).with_(extra=extra)


def _files(family: Family, key: str, value: Any) -> tuple[str, ...]:
    return family.sampling.files(Request(extra={key: value}))


def _with(value: Any, names: Mapping[str, str]) -> Any:
    """A value of any shape with files in it replaced, also where they are the names of a table."""
    if isinstance(value, Mapping):
        return {_with(key, names): _with(inner, names) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_with(inner, names) for inner in value]
    return names.get(str(value), value) if isinstance(value, str | Path) else value


# ------------------------------------------------------------------------------------- the hashes


def frames_hash(video: Tensor) -> str:
    """Hash of a clip's float pixels, before any codec: what "bit-equal" is measured on."""
    return sha256(video.detach().float().contiguous().cpu().numpy().tobytes()).hexdigest()


def file_hash(path: Path) -> str:
    """Hash of an input file, or of the files of a folder of frames, read in pieces.

    Raises `BadRequest` for what is not a regular file, and for more than `MAX_INPUT` bytes.
    """
    digest, count = sha256(), 0
    for file in sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]:
        if not bounds.is_regular(file):
            raise BadRequest(f"{bounds.printable(str(file), 200)} is not a regular file; expected a picture or a clip")
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
                count += len(piece)
                if count > MAX_INPUT:
                    raise BadRequest(
                        f"{bounds.printable(str(path), 200)} is longer than the {MAX_INPUT:,} bytes of a clip"
                    )
    return digest.hexdigest()
