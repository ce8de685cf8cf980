"""Answers with the bytes of a file: one range, validators, and a name chosen by the server."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import anyio.to_thread
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kinema.server.http.errors import FieldError
from kinema.server.jobs import ServiceError

CHUNK = 2**18
_RANGE = re.compile(r"bytes=\s*([0-9]{0,18})-([0-9]{0,18})\s*")


class FileAnswer(Response):
    """A file that `opened` has opened. The file stays readable if its clip is deleted meanwhile."""

    def __init__(self, file: BinaryIO, span: tuple[int, int], status: int, headers: Mapping[str, str]) -> None:
        self.status_code, self.background = status, None
        self._file, self._span = file, span
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        start, end = self._span
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] == "HEAD" or start >= end:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            await anyio.to_thread.run_sync(self._file.seek, start)
            while start < end:
                chunk = await anyio.to_thread.run_sync(self._file.read, min(CHUNK, end - start))
                start += len(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": bool(chunk) and start < end})
                if not chunk:
                    return
        finally:
            self._file.close()


async def opened(path: Path, name: str, kind: str, headers: Mapping[str, str]) -> Response:
    """Open a file of the store as an answer. ``headers`` are the request's; 404 if the file is gone, 416 for a range
    outside of it.
    """
    try:
        file, status = await anyio.to_thread.run_sync(_open, path)
    except OSError:
        raise ServiceError(404, "not_found", "the file is not there any more") from None
    key = f"{name} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
    tag = f'"{hashlib.sha256(key.encode()).hexdigest()[:32]}"'
    given = {
        "Content-Type": kind,
        "Content-Disposition": f'attachment; filename="{name}"',
        "Accept-Ranges": "bytes",
        "ETag": tag,
        "Cache-Control": "private, no-cache",
    }
    try:
        if tag in re.split(r"\s*,\s*", headers.get("if-none-match", "")):
            file.close()
            return Response(status_code=304, headers=given)
        span = _span(headers, status.st_size, tag)
    except BaseException:
        file.close()
        raise
    if span is None:
        given["Content-Length"] = str(status.st_size)
        return FileAnswer(file, (0, status.st_size), 200, given)
    given["Content-Length"] = str(span[1] - span[0])
    given["Content-Range"] = f"bytes {span[0]}-{span[1] - 1}/{status.st_size}"
    return FileAnswer(file, span, 206, given)


def _open(path: Path) -> tuple[BinaryIO, os.stat_result]:
    file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)), "rb", 0)
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise FileNotFoundError
    return file, status


def _span(headers: Mapping[str, str], size: int, tag: str) -> tuple[int, int] | None:
    """Start and end of the range that is asked for; None: the whole file, also for several ranges and other units."""
    given = headers.get("range")
    if given is None or "," in given or not given.strip().lower().startswith("bytes"):
        return None
    if headers.get("if-range", tag) != tag:
        return None
    found = _RANGE.fullmatch(given.lower())
    if found and (found[1] or found[2]):
        first, last = found[1], found[2]
        start = int(first) if first else max(0, size - int(last))
        end = min(size, int(last) + 1) if first and last else size
        if start < end:
            return start, end
    message = f"the range is not within the file of {size:,} bytes"
    raise RangeError(message, size)


class RangeError(FieldError):
    """416, with the header that gives the file's size."""

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message, "Range", status=416, code="invalid_range")
        self.headers = {"Content-Range": f"bytes */{size}"}
