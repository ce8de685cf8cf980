"""File and folder locks between processes; the kernel releases a lock when its process ends."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kinema.bounds import printable
from kinema.schema import BadRequest


@contextmanager
def locked(path: Path, busy: str, *, wait: bool = False) -> Iterator[int]:
    """Lock ``path``, a folder or a file (created if missing), and yield its open file descriptor.

    Raises BadRequest with the message ``busy`` if another process holds the lock (``wait`` blocks instead), or if the
    file is a link, a FIFO or otherwise not a regular file. Windows and file systems without locks do not lock.
    """
    handle = _open(path)
    try:
        _lock(handle, busy, wait)
        if not _is_current(handle, path):  # the previous owner ended and removed the file
            raise BadRequest(busy)
        yield handle
    finally:
        os.close(handle)


def _open(path: Path) -> int:
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT | os.O_APPEND
    # Do not follow links or block on a FIFO.
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        what = "it is a link" if path.is_symlink() else error.strerror
        raise BadRequest(f"cannot open {printable(str(path), 200)}: {what}; expected a regular file") from error
    if not (path.is_dir() or stat.S_ISREG(os.fstat(handle).st_mode)):
        os.close(handle)
        raise BadRequest(f"cannot open {printable(str(path), 200)}: expected a regular file")
    return handle


def _lock(handle: int, busy: str, wait: bool) -> None:
    if os.name == "nt":
        return
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise BadRequest(busy) from None
    except OSError:
        return  # a file system without locks


def _is_current(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False
