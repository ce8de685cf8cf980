"""Which files of a data set may be read: regular files inside its folder.

A data set may be untrusted, so links that lead out of the folder are skipped unless ``follow_links`` is set. Other
files than regular ones are always skipped: reading a FIFO would block, and a device may never end.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Hashable
from pathlib import Path

from kinema.bounds import printable
from kinema.schema import BadRequest

MAX_DEPTH = 32
"""Levels of nested folders that are searched."""
MAX_FILES = 500_000
"""Limit on the files and folders of a data set, and on the rows of a list."""

ABSENT = "missing"
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
        """Why ``path`` may not be read (`ABSENT`, `OUTSIDE` or `ODD`); None if it may."""
        try:
            status = path.lstat()
            linked = stat.S_ISLNK(status.st_mode)
            if linked:
                status = path.stat()
        except (OSError, ValueError):  # a broken or circular link, or an invalid name
            return ABSENT
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            return ODD
        if self.follow_links or (self._contains(path) if linked else self._contains_folder(path.parent)):
            return None
        return OUTSIDE

    def file(self, path: Path) -> str | None:
        """As `fault`, but a folder counts as `ODD`."""
        return self.fault(path) or (ODD if is_folder(path) else None)

    def _contains(self, path: Path) -> bool:
        real = os.path.realpath(path)
        return real == self._real or real.startswith(self._real.rstrip(os.sep) + os.sep)

    def _contains_folder(self, folder: Path) -> bool:
        if folder not in self._folders:
            self._folders[folder] = self._contains(folder)
        return self._folders[folder]

    def names(self, folder: Path) -> list[Path]:
        """The paths in a folder, sorted, without hidden ones.

        Raises `OSError` for an unreadable folder, `BadRequest` beyond `MAX_FILES` paths in all.
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
    """Whether a path is a folder or a link to one; False if it cannot be accessed."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def size(path: Path) -> int:
    """Size in bytes of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in (sorted(path.iterdir()) if path.is_dir() else [path]))


def identity(path: Path) -> Hashable:
    """A key that is equal for all names of one file: differing in case, through links, or hard-linked."""
    status = path.stat()
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.normcase(os.path.realpath(path))
