"""Models, add-ons and LoRAs that clients may name, and where they are. Imports without torch."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinema import registry
from kinema.conditioning.prompts.folders import Folder
from kinema.schema import BadRequest
from kinema.server.jobs import ServiceError
from kinema.server.settings import Settings

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
INDEX, CONFIG = "model_index.json", "config.json"
MAX_DEPTH, MAX_ENTRIES = 6, 20_000
FRESH = 2.0
"""Seconds for which a listing of the folders is used again."""
LICENCE = "Apache-2.0"
"""Of the models in the package."""
_PRESET = re.compile(r"[a-z]+/[\w.-]{1,64}")


@dataclass(frozen=True)
class Entry:
    """A name, and what `kinema.load` opens for it. ``stamp`` changes when its files do."""

    id: str
    kind: str
    source: str
    path: Path | None = None
    licence: str | None = None
    stamp: str = ""

    def to_source(self) -> Mapping[str, Any]:
        return {"source": self.source, "stamp": self.stamp}


class Catalogue:
    """Names from the package, the model folders and the LoRA folder."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.presets: Mapping[str, Sequence[str]] = {}
        """Families to their presets, as the planner reports them."""
        self._found: tuple[float, dict[str, Entry], dict[str, Path]] | None = None
        self._walking = asyncio.Lock()

    def model(self, name: str) -> Entry:
        """Raises `ServiceError` 400 for a name that is not listed."""
        name = self.settings.aliases.get(name, name)
        entry = self._models().get(name)
        if entry is not None:
            return entry
        if _PRESET.fullmatch(name) and name.partition("/")[0] in registry.FAMILIES:
            return Entry(name, "preset", name)
        known = {*self._models(), *registry.FAMILIES, *self.settings.aliases}
        raise ServiceError(400, "model_not_found", registry.unknown_name("model", name, known))

    def lora(self, name: str) -> str:
        """Return the path, or the name of an included LoRA. Raises `ServiceError` 400 for a name that is not listed."""
        if registry.ADD_ONS.get(name) == "lora":
            return str(registry.weight_file(f"{name}.safetensors"))
        path = self._loras().get(name)
        if path is None:
            known = {*self._loras(), *(each for each, slot in registry.ADD_ONS.items() if slot == "lora")}
            raise ServiceError(400, "lora_not_found", registry.unknown_name("LoRA", name, known))
        return str(path)

    def add_on(self, name: str) -> Entry:
        """Return an included add-on, or a file or included model that fits a slot of another. Raises `ServiceError` 400
        for a name that is not listed; whether it fits is for the model to say.
        """
        if registry.ADD_ONS.get(name, "lora") != "lora":
            path = registry.weight_file(f"{name}.safetensors")
            return Entry(name, "add-on", str(path), path, LICENCE)
        entry = self._models().get(name)
        if entry is None or entry.path is None:
            known = {*(each for each, slot in registry.ADD_ONS.items() if slot != "lora")}
            known |= {each.id for each in self._models().values() if each.path is not None}
            raise ServiceError(400, "add_on_not_found", registry.unknown_name("add-on", name, known))
        return Entry(name, entry.kind, str(entry.path), entry.path, entry.licence, entry.stamp)

    def entries(self) -> list[Entry]:
        """Return all models, presets included."""
        presets = [f"{family}/{preset}" for family, names in self.presets.items() for preset in names]
        return [*self._models().values(), *(Entry(name, "preset", name) for name in presets)]

    def others(self) -> list[dict[str, Any]]:
        """Return rows of the LoRAs and add-ons."""
        rows = []
        for name, slot in registry.ADD_ONS.items():
            path = registry.weight_file(f"{name}.safetensors")
            kind, family = ("lora" if slot == "lora" else "add-on"), name.partition("-")[0]
            rows.append(_row(name, kind, path, LICENCE) | {"slot": None if slot == "lora" else slot, "family": family})
        seen: set[Path] = set()
        for name, path in self._loras().items():
            if path not in seen:
                rows.append(_row(name, "lora", path, None) | {"slot": None, "family": None})
            seen.add(path)
        return rows

    def _models(self) -> dict[str, Entry]:
        return self._listing()[1]

    def _loras(self) -> dict[str, Path]:
        return self._listing()[2]

    def _listing(self) -> tuple[float, dict[str, Entry], dict[str, Path]]:
        found = self._fresh()
        if found is None:
            found = self._found = self._walk()
        return found

    @property
    def fresh(self) -> bool:
        """Whether names can be looked up without walking the folders."""
        return self._fresh() is not None

    def _fresh(self) -> tuple[float, dict[str, Entry], dict[str, Path]] | None:
        return None if self._found is None or time.monotonic() - self._found[0] > FRESH else self._found

    async def refresh(self) -> None:
        """Walk the folders in a thread if the listing is old; names that are asked for right after it do not block."""
        async with self._walking:
            if self._fresh() is None:
                self._found = await asyncio.to_thread(self._walk)

    def _walk(self) -> tuple[float, dict[str, Entry], dict[str, Path]]:
        models = {entry.id: entry for entry in _included()}
        for folder in self.settings.model_folders:
            for entry in _in_folder(folder):
                taken = entry.id in models or entry.id in registry.ADD_ONS or _PRESET.fullmatch(entry.id)
                name = f"./{entry.id}" if taken and entry.id.partition("/")[0] in _RESERVED else entry.id
                models.setdefault(name, Entry(name, "file", entry.source, entry.path, None, entry.stamp))
        loras = _loras_of(self.settings.lora_folder)
        return time.monotonic(), models, loras


_RESERVED = {*registry.EMBEDDED, *registry.ADD_ONS, *registry.ALIASES, *registry.FAMILIES}


def _included() -> list[Entry]:
    entries = []
    for name, (_, file) in registry.EMBEDDED.items():
        path = registry.weight_file(file)
        if path.is_file():
            entries.append(Entry(name, "embedded", name, path, LICENCE))
    for name, target in registry.ALIASES.items():
        repository = "/".join(target.split("/")[:2])
        folder = hub_folder(repository)
        stamp = str(folder.stat().st_mtime_ns) if folder.is_dir() else ""
        entries.append(Entry(name, "published", f"hub:{name}", None, registry.TERMS.get(repository), stamp))
    return entries


def hub_folder(repository: str) -> Path:
    """Return where the hub's cache keeps a repository."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    return cache / f"models--{repository.replace('/', '--')}"


def _in_folder(root: Path) -> list[Entry]:
    """Return the weight files and model folders below a folder. What links lead out of it is left out."""
    root, entries, count = root.resolve(), list[Entry](), 0
    for place, folders, files in os.walk(root, followlinks=False):
        here = Path(place)
        count += len(folders) + len(files)
        if len(here.relative_to(root).parts) >= MAX_DEPTH or count > MAX_ENTRIES:
            folders.clear()
        linked = [each for each in folders if (here / each).is_symlink()]
        whole = here != root and (INDEX in files or (CONFIG in files and any(_is_weights(name) for name in files)))
        if whole:
            folders.clear()
            entries += _entry(root, here)
            continue
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for name in sorted(files):
            if _is_weights(name):
                entries += _entry(root, here / name)
        for name in linked:
            entries += _entry(root, here / name) if (here / name / INDEX).is_file() else []
    return entries


def _entry(root: Path, path: Path) -> list[Entry]:
    try:
        actual = path.resolve()
        status = actual.stat()
    except (OSError, RuntimeError):  # it is gone by now, cannot be read, or links in a circle
        return []
    if not actual.is_relative_to(root):
        return []
    stamp = f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}"
    return [Entry(path.relative_to(root).as_posix(), "file", str(actual), actual, None, stamp)]


def _is_weights(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _loras_of(folder: Path | None) -> dict[str, Path]:
    if folder is None:
        return {}
    root = folder.resolve()
    try:
        files = Folder.read(root, "--lora-folder").files
    except BadRequest:
        return {}
    return {name: path for name, path in files.items() if _is_within(path, root)}


def _is_within(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # it cannot be read, or links in a circle
        return False


def _row(name: str, kind: str, path: Path, licence: str | None) -> dict[str, Any]:
    here = path.is_file()
    return {
        "id": name, "kind": kind, "parameters": None, "bytes": path.stat().st_size if here else 0, "licence": licence,
        "here": here, "download": None,
    }  # fmt: skip
