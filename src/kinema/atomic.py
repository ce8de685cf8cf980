"""Atomic writes: write a temporary file next to the target, flush it, then rename it.

Media, checkpoints and training write this way. Temporary files of a killed process (``.name.0123abcd.part``) are
removed by the next process that writes into the folder.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from kinema.schema import BadRequest
from kinema.values import cut_middle

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of a full disk: no space, quota exceeded, file size limit."""
_UNLINKED = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK})
"""Errors of file systems without hard links."""
LEFT_BEHIND = 3600.0
"""Seconds after which an untouched ``.part`` counts as left behind by a killed process."""
_PART = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.part(?P<old>\.old)?", re.DOTALL)
_NAME = 80
"""Maximum bytes of the target's name in temporary and numbered names, because file systems limit name lengths."""
_tidied: set[Path] = set()

T = TypeVar("T")


class AlreadyExists(BadRequest):
    """The target exists, such as one that another process wrote meanwhile; it is kept."""


def check_folder(path: Path) -> None:
    """Raise `BadRequest` if the folder of ``path`` is missing, is a file, or is not writable.

    Call it before sampling, so that such errors do not come after minutes of work.
    """
    folder = path.parent
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # a new file, or a problem with the folder, which is reported below
    except OSError as error:  # the name is too long, or the folder is not readable
        raise BadRequest(f"cannot write {str(path)[:80]}: {error.strerror}") from error
    if not folder.exists():
        raise BadRequest(f"cannot write {path.name}: the folder {folder} does not exist")
    if not folder.is_dir():
        raise BadRequest(f"cannot write {path.name}: {folder} is a file, not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadRequest(f"cannot write {path.name}: this user has no write permission for the folder {folder}")


@contextmanager
def replacing(path: Path, *, folder: bool = False, exclusive: bool = False, flush: bool = True) -> Iterator[Path]:
    """Yield a hidden path next to ``path`` to write to; on success it is renamed to ``path`` atomically.

    The old content stays until then, and its file mode is kept. The hidden file is removed on any exception, including
    interrupts. ``folder`` creates a folder instead of a file. With ``exclusive`` nothing is replaced: if several
    processes write the same name, one succeeds and the others raise `AlreadyExists`. Without ``flush`` the data may be
    lost in a power cut. Raises `BadRequest` if the target is not writable or the disk is full.
    """
    flushed = sync if flush else _unflushed
    check_folder(path)
    if path.parent not in _tidied:
        _tidied.add(path.parent)
        tidy(path.parent, LEFT_BEHIND)
    # Two writers of one name must not share a temporary.
    part = path.with_name(f".{_cut(path.name, _NAME)}.{secrets.token_hex(4)}.part")
    try:
        if path.is_dir() and not folder:
            raise BadRequest(f"cannot write {path}: it is a folder; expected a file name")
        if folder and path.is_file():
            raise BadRequest(f"cannot write the folder {path}: a file of that name exists")
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
            flushed(file)
        flushed(part)
        (_claim if exclusive else _swap)(part, path)
    except OSError as error:
        if error.errno in FULL:
            raise BadRequest(_full(path)) from error
        raise
    finally:
        _remove(part)
    flushed(path.parent)


def numbered(path: Path) -> Iterator[Path]:
    """Yield ``path``, then ``name-2``, ``name-3``…; long names are shortened to keep their length."""
    yield path
    size = len(os.fsencode(path.stem))
    for number in itertools.count(2):
        end = f"-{number}"
        stem = path.stem if size + len(end) <= _NAME else _cut(path.stem, max(size - len(end), 1))
        yield path.with_name(f"{stem}{end}{path.suffix}")


def write_numbered(path: Path, write: Callable[[Path], T], taken: Callable[[Path], object] = os.path.lexists) -> T:
    """Call ``write`` with the first free one of the `numbered` names and return its result.

    Names that are ``taken``, or for which ``write`` raises `AlreadyExists`, are skipped.
    """
    for name in numbered(path):
        if not taken(name):
            with contextlib.suppress(AlreadyExists):
                return write(name)
    raise AssertionError("unreachable: numbered() is infinite")


def refuse_foreign(folder: Path, accepts: Callable[[str], object], what: str, expected: str) -> None:
    """Raise `BadRequest` if a folder to be replaced or written into has names that ``accepts`` rejects.

    ``what`` is what belongs there ("a training run"), ``expected`` the folder to give instead.
    """
    names = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
    if foreign := next((name for name in names if not accepts(name)), None):
        where, other = cut_middle(str(folder), 120), cut_middle(foreign, 80)
        raise BadRequest(f"{where} holds {other}, which does not belong to {what}; expected {expected}")


def _cut(name: str, size: int) -> str:
    """Shorten a name to at most ``size`` bytes, the unit of file systems' limits, at a character boundary."""
    data = os.fsencode(name)
    return name if len(data) <= size else data[:size].decode(errors="ignore")


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder if the file system supports it, to the disk."""
    if not path.is_dir():
        _flush(path, os.O_RDWR)
        return
    # Windows cannot open folders, and some network and user-space file systems cannot flush them.
    with contextlib.suppress(OSError):
        _flush(path, os.O_RDONLY)


def _unflushed(_path: Path) -> None:
    """Do not flush."""


def _flush(path: Path, mode: int) -> None:
    handle = os.open(path, mode)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(part: Path, path: Path) -> None:
    if not path.is_dir():
        with contextlib.suppress(OSError):  # no old file, or a file system without modes
            before = path.lstat()
            if stat.S_ISREG(before.st_mode):
                part.chmod(stat.S_IMODE(before.st_mode))
        part.replace(path)
        return
    # A rename cannot replace a folder with content: move the old one aside first, and back on failure.
    aside = path.with_name(f"{part.name}.old")
    path.replace(aside)
    try:
        part.replace(path)
    except BaseException:
        aside.replace(path)
        raise
    _remove(aside)


def _claim(part: Path, path: Path) -> None:
    """Rename ``part`` to ``path`` unless it exists; unlike a rename, a link and ``mkdir`` fail in that case."""
    try:
        if part.is_dir():
            path.mkdir()
            part.replace(path)  # replaces the new empty folder
            return
        try:
            os.link(part, path, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _UNLINKED:
                raise
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            part.replace(path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise AlreadyExists(f"{path} exists; another process wrote it meanwhile") from error
        raise


def tidy(folder: Path, older_than: float) -> None:
    """Remove temporary files of killed processes from a folder, and restore a folder that one had moved aside.

    Only this user's files with names of this module, untouched for ``older_than`` seconds, are removed. Use 0 only if
    no other process writes there.
    """
    with contextlib.suppress(OSError):
        for left in list(folder.iterdir()):
            found = _PART.fullmatch(left.name)
            if found and _is_left_behind(left, older_than):
                whole = folder / found["name"]
                if found["old"] and len(os.fsencode(found["name"])) < _NAME - 3 and not whole.exists():
                    left.replace(whole)
                else:
                    _remove(left)


def _is_left_behind(left: Path, older_than: float) -> bool:
    status = left.lstat()
    own = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    plain = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    inner = max((p.lstat().st_mtime for p in left.iterdir()), default=0.0) if stat.S_ISDIR(status.st_mode) else 0.0
    return own and plain and (not older_than or time.time() - max(status.st_mtime, inner) > older_than)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _full(path: Path) -> str:
    return f"the disk of {path.parent.resolve()} is full: {path.name} was not written"
