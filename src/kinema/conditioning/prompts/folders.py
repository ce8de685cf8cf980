"""A folder of files that prompts name: embeddings and LoRAs, also in folders inside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kinema.bounds import is_regular, printable
from kinema.registry import unknown_name
from kinema.schema import BadRequest
from kinema.values import quoted

MAX_FILES = 20_000
MAX_DEPTH = 8
"""Levels of folders inside a folder that are searched."""
SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt", ".pth")


@dataclass(frozen=True)
class Folder:
    """Files by the names that prompts give them: the name without suffix, with it, and with the folders inside.

    Links to folders are followed where they stay inside; links to files always are.
    """

    files: Mapping[str, Path]

    @staticmethod
    def read(root: Path, option: str) -> Folder:
        """List a folder. Raises BadRequest for one that does not exist or has too many files."""
        if not root.is_dir():
            raise BadRequest(f"{option} is {printable(str(root), 200)}, which is not a folder; expected one")
        files: dict[str, Path] = {}
        count, depth, inner = 0, len(root.parts), root.resolve()
        for place, folders, names in os.walk(root, followlinks=True):
            inside = Path(place).relative_to(root)
            deep = len(Path(place).parts) - depth >= MAX_DEPTH
            folders[:] = [] if deep else sorted(each for each in folders if _stays(Path(place) / each, inner))
            count += len(names) + len(folders)
            if count > MAX_FILES:
                raise BadRequest(f"{option} {printable(str(root), 200)} has more than {MAX_FILES:,} files")
            for name in sorted(names):
                path = Path(place) / name
                if path.suffix.lower() in SUFFIXES:
                    for key in (path.stem, name, (inside / path.stem).as_posix(), (inside / name).as_posix()):
                        files.setdefault(key, path)
        return Folder(files)

    def file(self, name: str, what: str) -> Path:
        """Return a file by name. Raises BadRequest with similar names for one that is not there."""
        path = self.files.get(name)
        if path is None:
            if not self.files:
                raise BadRequest(f"there is no {what} {quoted(name)}: its folder has no weight files")
            raise BadRequest(unknown_name(what, name, {path.stem for path in self.files.values()}))
        if not is_regular(path):
            raise BadRequest(f"{printable(str(path), 200)} is not a regular file; expected a file of weights")
        return path


def _stays(folder: Path, root: Path) -> bool:
    """Whether a folder is none that a link puts outside ``root``, or above itself, which would never end."""
    if not folder.is_symlink():
        return True
    place = folder.resolve()
    return place.is_relative_to(root) and not folder.parent.resolve().is_relative_to(place)
