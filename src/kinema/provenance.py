"""Write the recipe of a clip: what `kinema replay` needs to generate it again.

A clip is shared with its recipe, so files are recorded by name and hash, without folders: the request's files by role
(`Request.files`) in ``inputs``, those of the family's options by name in ``extra_inputs``.
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
from kinema.job import StageRun, base_of
from kinema.schema import BadRequest, Request
from kinema.stages import image_model, super_resolution_model
from kinema.system import Family, System, dtype_name

MAX_INPUT = 2**36
"""Maximum size of an input in bytes; an hour of video is smaller."""


VERSION = 2
"""Version of new recipes; `kinema.recipes` also reads older ones."""


def recipe(works: Sequence[StageRun], noises: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
    """Return the job as JSON data for `kinema replay`.

    `generate` adds the hashes of each stage's weights and of the clip's frames.
    """
    base = base_of(works)
    system, request = base.system, base.stage.request
    extra_names = names_of([(work.system.family, work.stage.request) for work in works])
    record: dict[str, Any] = {
        "recipe": VERSION,
        "kinema": __version__,
        "stages": [_stage(work, extra_names, works[0].system.name) for work in works],
        "inputs": {name: file_hash(Path(file)) for name, file in request.files().items()},
        "device": str(system.device),
        "dtype": dtype_name(system.policy.precision),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()},
    }
    if system.compiled:
        record["compiled"] = True
    if extra_names:
        record["extra_inputs"] = {name: file_hash(Path(file)) for file, name in extra_names.items()}
    if noises:
        record["noise"] = {name: frames_hash(noise) for name, noise in noises.items()}
    return record


def _stage(work: StageRun, extra_names: Mapping[str, str], first: str) -> dict[str, Any]:
    """Return the entry of one stage: its model, its request with file names, and its settled values.

    ``first`` is the name of the first stage's model: the image model, if the request names one.
    """
    system = work.system
    request = named(work.stage.request, system.family, extra_names).with_(loras=None)
    if request.super_resolution is not None:
        request = request.with_(super_resolution=system.name)
    if request.image_model is not None:
        request = request.with_(image_model=first)
    entry = {**work.stage.to_dict(), "family": system.family.name, "request": json.loads(request.to_json())}
    if variant := system.weights.variant or system.weights.model:
        entry["variant"] = variant
    if system.loras.files:
        entry["loras"] = [file.to_recipe() for file in system.loras.files]
    if system.weights.added:
        entry["added"] = [each.to_recipe() for each in system.weights.added]
    if system.overrides:
        entry["overrides"] = dict(system.overrides)
    return entry


def paths(system: System, request: Request) -> dict[str, str]:
    """Return the absolute paths of a recipe's files by role; stored only if the user asks for it."""
    files = {"model": system.weights.path} if system.weights.path else {}
    files |= {f"added {each.slot}": each.source.path for each in system.weights.added}
    files |= {f"lora {number}": file.path for number, file in enumerate(system.loras.files, 1)}
    if request.super_resolution is not None and (
        upper := super_resolution_model(system, request.super_resolution).weights.path
    ):
        files["super_resolution"] = upper
    if request.image_model is not None and (painter := image_model(system, request).weights.path):
        files["image_model"] = painter
    files |= {name: Path(file) for name, file in request.files().items()}
    files |= {name: Path(file) for file, name in names_of([(system.family, request)]).items()}
    return {name: str(path.absolute()) for name, path in files.items()}


# ------------------------------------------------------------------------------------- the names


def names(files: Iterable[str]) -> dict[str, str]:
    """Map each file to a unique name without folders: ``a/x.png`` and ``b/x.png`` become ``x.png`` and ``x-2.png``."""
    unique: dict[str, str] = {}
    for file in files:
        name = registry.file_name(file)
        stem, point, suffix = name.rpartition(".")
        count = 1
        while name in unique.values():
            count += 1
            name = f"{stem}-{count}.{suffix}" if point else f"{suffix}-{count}"
        unique.setdefault(file, name)
    return unique


def names_of(stages: Sequence[tuple[Family, Request]]) -> dict[str, str]:
    """Map the files in the options of stages to names that their families also recognise as files."""
    unique = names(dict.fromkeys(file for family, request in stages for file in family.sampling.files(request)))
    for family, request in stages:
        own = {unique[file] for file in family.sampling.files(request)}
        if set(family.sampling.files(named(request, family, unique))) != own:
            return {file: f"./{name}" for file, name in unique.items()}
    return unique


def named(request: Request, family: Family, extra_names: Mapping[str, str]) -> Request:
    """Replace the request's files with their names; ``extra_names`` are those of the family's options."""
    own = {name: registry.file_name(file) for name, file in request.files().items()}
    return replaced(request, [family], own, extra_names)


def replaced(
    request: Request, families: Iterable[Family], own: Mapping[str, str], extra_names: Mapping[str, str]
) -> Request:
    """Replace the request's own files by role (see `Request.files`), and the files in options of these families.

    Other option values are kept, even if they equal a file name.
    """
    extra = {
        key: substituted(value, {file: extra_names[file] for family in families for file in _files(family, key, value)})
        for key, value in request.extra.items()
    }
    return request.with_files(own).with_(extra=extra)


def _files(family: Family, key: str, value: Any) -> tuple[str, ...]:
    return family.sampling.files(Request(extra={key: value}))


def substituted(value: Any, names: Mapping[str, str]) -> Any:
    """Replace files in a nested value, including the keys of mappings."""
    if isinstance(value, Mapping):
        return {substituted(key, names): substituted(inner, names) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [substituted(inner, names) for inner in value]
    return names.get(str(value), value) if isinstance(value, str | Path) else value


# ------------------------------------------------------------------------------------- the hashes


def frames_hash(video: Tensor) -> str:
    """Hash the clip's float32 pixels before encoding; clips with equal hashes are bit-identical."""
    return sha256(video.detach().float().contiguous().cpu().numpy().tobytes()).hexdigest()


def file_hash(path: Path) -> str:
    """Hash an input file or a folder of frames.

    Raises `BadRequest` for anything but regular files, and for more than `MAX_INPUT` bytes.
    """
    digest, count = sha256(), 0
    for file in sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]:
        if not bounds.is_regular(file):
            raise BadRequest(f"{bounds.printable(str(file), 200)} is not a regular file; expected an image or clip")
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
                count += len(piece)
                if count > MAX_INPUT:
                    raise BadRequest(
                        f"{bounds.printable(str(path), 200)} has more than {MAX_INPUT:,} bytes; use a shorter clip"
                    )
    return digest.hexdigest()
