"""Files that appear whole or not at all: written beside their name, flushed, then renamed.

Media, checkpoints and training all write this way, so it lives on the lowest layer. What a killed process left
beside its target (``.name.0123abcd.part``) is tidied by the next one that writes into the same folder.
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
"""What the kernel says when bytes no longer fit: no space, quota reached, file size limit."""
_UNLINKED = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK})
"""What file systems without hard links say when one is asked for."""
LEFT_BEHIND = 3600.0
"""Seconds after which a ``.part`` that nobody has touched is taken for what a killed process left."""
_PART = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.part(?P<old>\.old)?", re.DOTALL)
_NAME = 80
"""Bytes of the target's name in that of its part, and of a name that a number makes no longer: limits are near."""
_tidied: set[Path] = set()

T = TypeVar("T")


class AlreadyExists(BadRequest):
    """The name that was to be written exists: another writer was faster, and what it wrote stays."""


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
def replacing(path: Path, *, folder: bool = False, exclusive: bool = False, flush: bool = True) -> Iterator[Path]:
    """Yield a hidden path beside ``path`` to write to; on success it becomes ``path`` in one step.

    The old content stays until then, and a file that is replaced hands its mode on; whatever is raised inside, an
    interrupt included, the hidden file is removed. ``folder`` makes a folder instead of a file. With ``exclusive``
    nothing is replaced: of several writers of one name one gets it, and the others raise `AlreadyExists`. Without ``flush`` the
    bytes reach the disk when the system writes them, for what need not outlive a power cut. Raises `BadRequest` where
    the place cannot be written or the disk fills up.
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
    """``path``, then ``name-2``, ``name-3``… beside it. A long name gets no longer."""
    yield path
    size = len(os.fsencode(path.stem))
    for number in itertools.count(2):
        end = f"-{number}"
        stem = path.stem if size + len(end) <= _NAME else _cut(path.stem, max(size - len(end), 1))
        yield path.with_name(f"{stem}{end}{path.suffix}")


def beside(path: Path, write: Callable[[Path], T], taken: Callable[[Path], object] = os.path.lexists) -> T:
    """What ``write`` returns for the first of the `numbered` names that it gets for itself.

    Names that are ``taken`` are passed over, and those for which ``write`` raises `AlreadyExists`: another writer came first.
    """
    for name in numbered(path):
        if not taken(name):
            with contextlib.suppress(AlreadyExists):
                return write(name)
    raise AssertionError("numbers do not end")


def refuse_foreign(folder: Path, ours: Callable[[str], object], what: str, expected: str) -> None:
    """Refuse a folder that is about to be replaced or written into where not all names in it are ``ours``.

    ``what`` is what belongs there ("a training run"), ``expected`` the folder to name instead.
    """
    names = sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []
    if foreign := next((name for name in names if not ours(name)), None):
        where, other = cut_middle(str(folder), 120), cut_middle(foreign, 80)
        raise BadRequest(f"{where} holds {other}, which does not belong to {what}; expected {expected}")


def _cut(name: str, size: int) -> str:
    """A name cut to so many bytes, which is what file systems count, between two characters."""
    data = os.fsencode(name)
    return name if len(data) <= size else data[:size].decode(errors="ignore")


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's names, to the disk; of a folder as far as the file system can."""
    if not path.is_dir():
        _flush(path, os.O_RDWR)
        return
    # Windows opens no folders, and some network and user-space file systems flush none: the rename stands.
    with contextlib.suppress(OSError):
        _flush(path, os.O_RDONLY)


def _unflushed(_path: Path) -> None:
    """Leave the bytes to the system."""


def _flush(path: Path, mode: int) -> None:
    handle = os.open(path, mode)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(part: Path, path: Path) -> None:
    if not path.is_dir():
        with contextlib.suppress(OSError):  # none is there, or its file system keeps no modes: the content counts
            before = path.lstat()
            if stat.S_ISREG(before.st_mode):
                part.chmod(stat.S_IMODE(before.st_mode))
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


def _claim(part: Path, path: Path) -> None:
    """Give ``part`` the name ``path`` unless anything has it: a link and ``mkdir`` fail where a rename replaces."""
    try:
        if part.is_dir():
            path.mkdir()
            part.replace(path)  # over the empty folder just made
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
            raise AlreadyExists(f"{path} exists; it was written while this was at work") from error
        raise


def tidy(folder: Path, older_than: float) -> None:
    """Remove what killed writers left in a folder; a folder that one had stepped aside is put back.

    Only files of this user and of our own naming, untouched for ``older_than`` seconds: 0 is for who knows that
    nobody else writes there.
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
    told = left.lstat()
    own = not hasattr(os, "getuid") or told.st_uid == os.getuid()
    plain = stat.S_ISREG(told.st_mode) or stat.S_ISDIR(told.st_mode)
    inner = max((p.lstat().st_mtime for p in left.iterdir()), default=0.0) if stat.S_ISDIR(told.st_mode) else 0.0
    return own and plain and (not older_than or time.time() - max(told.st_mtime, inner) > older_than)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _full(path: Path) -> str:
    return f"the disk that holds {path.parent.resolve()} is full: {path.name} is not written and nothing of it was kept"
