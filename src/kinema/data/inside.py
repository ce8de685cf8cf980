"""Which files of a data set are read: regular ones that lie inside its folder.

A data set may come from a stranger, so a link that leads out of the folder is left out (``follow_links`` reads it),
and so is, always, what is not a regular file: a FIFO would wait for ever, a device might never end.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Hashable
from pathlib import Path

from kinema.bounds import printable
from kinema.schema import BadRequest

MAX_DEPTH = 32
"""Folders inside each other that are looked into."""
MAX_FILES = 500_000
"""Files and folders of one data set, or rows of one list."""

ABSENT = "not there"
OUTSIDE = "outside the folder (--follow-links reads it)"
ODD = "not a regular file"


class Inside:
    """The files under ``root`` that may be read."""

    def __init__(self, root: Path, *, follow_links: bool = False) -> None:
        self.root, self.follow_links = root, follow_links
        self._real = os.path.realpath(root)
        self._folders: dict[Path, bool] = {}
        self._counted: set[Path] = set()
        self._count = 0

    def fault(self, path: Path) -> str | None:
        """Why ``path`` is not read (`ABSENT`, `OUTSIDE` or `ODD`); None for a file or folder that is."""
        try:
            told = path.lstat()
            linked = stat.S_ISLNK(told.st_mode)
            if linked:
                told = path.stat()
        except (OSError, ValueError):  # a link that leads nowhere or in a circle, or a name that no disk can hold
            return ABSENT
        if not (stat.S_ISREG(told.st_mode) or stat.S_ISDIR(told.st_mode)):
            return ODD
        if self.follow_links or (self._holds(path) if linked else self._holds_folder(path.parent)):
            return None
        return OUTSIDE

    def file(self, path: Path) -> str | None:
        """As `fault`, and a folder is not a regular file either."""
        return self.fault(path) or (ODD if is_folder(path) else None)

    def _holds(self, path: Path) -> bool:
        real = os.path.realpath(path)
        return real == self._real or real.startswith(self._real.rstrip(os.sep) + os.sep)

    def _holds_folder(self, folder: Path) -> bool:
        if folder not in self._folders:
            self._folders[folder] = self._holds(folder)
        return self._folders[folder]

    def names(self, folder: Path) -> list[Path]:
        """What stands in a folder by name, hidden names aside.

        Raises `OSError` for a folder that may not be read, `BadRequest` once `MAX_FILES` were seen in all.
        """
        found = []
        with os.scandir(folder) as inside:
            for item in inside:
                self._count += folder not in self._counted
                if self._count > MAX_FILES:
                    raise BadRequest(
                        f"{printable(str(self.root), 200)} holds more than {MAX_FILES:,} files; expected fewer"
                    )
                if not item.name.startswith("."):
                    found.append(item.name)
        self._counted.add(folder)
        return [folder / name for name in sorted(found)]


def is_folder(path: Path) -> bool:
    """Whether a path is, or leads to, a folder; what cannot be looked at is none."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in (sorted(path.iterdir()) if path.is_dir() else [path]))


def identity(path: Path) -> Hashable:
    """What is equal for two names of one file: on disks that ignore case, through links, or by a hard link."""
    told = path.stat()
    return (told.st_dev, told.st_ino) if told.st_ino else os.path.normcase(os.path.realpath(path))
