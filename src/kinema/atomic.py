"""Files that appear whole or not at all: written beside their name, flushed, then renamed.

Media, checkpoints and training all write this way, so it lives on the lowest layer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kinema.schema import BadRequest

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the kernel says when bytes no longer fit: no space, quota reached, file size limit."""


def check_folder(path: Path) -> None:
    """Refuse a file name whose folder is missing, is a file, or cannot be written.

    Cheap enough to call before minutes of sampling, so that the answer does not come after them.
    """
    folder = path.parent
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # nothing is there yet, or the folder is at fault: said below
    except OSError as error:  # a name too long, or a folder that may not be looked into
        raise BadRequest(f"cannot write {str(path)[:80]}: {error.strerror}") from error
    if not folder.exists():
        raise BadRequest(f"cannot write {path.name}: the folder {folder} does not exist")
    if not folder.is_dir():
        raise BadRequest(f"cannot write {path.name}: {folder} is a file, not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadRequest(f"cannot write {path.name}: the folder {folder} may not be written by this user")


@contextmanager
def replacing(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Yield a hidden path beside ``path`` to write to; on success it becomes ``path`` in one rename.

    The old content stays until the rename; whatever is raised inside, an interrupt included, the
    hidden file is removed. ``folder`` makes a folder instead of a file. Raises `BadRequest` where the
    place cannot be written or the disk fills up.
    """
    check_folder(path)
    # Two writers of one name must not share a temporary, and a long name must stay under the limit.
    part = path.with_name(f".{path.name[:80]}.{secrets.token_hex(4)}.part")
    try:
        if path.is_dir() and not folder:
            raise BadRequest(f"cannot write {path}: it is a folder, and a file name was expected")
        if folder and path.is_file():
            raise BadRequest(f"cannot write {path}: it is a file, and a folder of that name was to be made")
        if folder:
            part.mkdir()
        else:
            part.touch(exist_ok=False)
    except OSError as error:
        if error.errno in FULL:
            raise BadRequest(_full(path)) from error
        raise BadRequest(f"cannot write {path}: {error.strerror}") from error
    try:
        yield part
        for file in sorted(part.iterdir()) if folder else [part]:
            sync(file)
        sync(part)
        _swap(part, path)
    except OSError as error:
        if error.errno in FULL:
            raise BadRequest(_full(path)) from error
        raise
    finally:
        _remove(part)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's names, to the disk; of a folder as far as the file system can."""
    if not path.is_dir():
        _flush(path, os.O_RDWR)
        return
    # Windows opens no folders, and some network and user-space file systems flush none: the rename stands.
    with contextlib.suppress(OSError):
        _flush(path, os.O_RDONLY)


def _flush(path: Path, mode: int) -> None:
    handle = os.open(path, mode)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(part: Path, path: Path) -> None:
    if not path.is_dir():
        part.replace(path)
        return
    # A rename cannot replace a folder that holds files: step the old one aside first, put it back on failure.
    aside = path.with_name(f"{part.name}.old")
    path.replace(aside)
    try:
        part.replace(path)
    except BaseException:
        aside.replace(path)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _full(path: Path) -> str:
    return f"the disk that holds {path.parent.resolve()} is full: {path.name} is not written and nothing of it was kept"
