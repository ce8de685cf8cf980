"""File checks, container detection from the first bytes, and safe opening with FFmpeg."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from kinema import bounds
from kinema.media.structure import is_animated_png
from kinema.schema import BadRequest


def readable_path(path: Path) -> Path:
    """Return ``path`` if it is a folder or a readable, non-empty regular file.

    Raises `BadRequest` otherwise: with similar names for a missing file, and without blocking on a pipe or device.
    """
    name = bounds.printable(str(path), 200)
    try:
        if path.exists():
            if path.is_dir():
                next(path.iterdir(), None)
                return path
            if not bounds.is_regular(path):
                raise BadRequest(
                    f"{name} is a pipe, socket or device, not a regular file; expected an image or a video"
                )
            with path.open("rb") as file:
                if not file.read(1):
                    raise BadRequest(f"{name} is empty (0 bytes); expected an image or a video")
            return path
        if not path.parent.is_dir():
            raise BadRequest(f"there is no file {name}: its folder does not exist")
        names = [p.name for p in path.parent.iterdir() if not p.name.startswith(".")]
    except OSError as error:  # no permission, or a name too long for the file system
        raise BadRequest(f"cannot open {bounds.printable(str(path), 80)}: {error.strerror}") from error
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    suggestion = f"; did you mean {bounds.printable(', '.join(near), 150)}?" if near else ""
    raise BadRequest(f"there is no file {name}{suggestion}")


def sniff(path: Path) -> str | None:
    """Detect the container from its first bytes: FFmpeg's demuxer name, "webp" or "apng" (Pillow's), else None."""
    with path.open("rb") as file:
        head = file.read(16)
    if head[4:8] == b"ftyp":
        return None if head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1") else "mov"
    if head[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip"):  # QuickTime before ftyp existed
        return "mov"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"WEBP"):
        return "avi" if head[8:12] == b"AVI " else "webp"
    if head[:8] == b"\x89PNG\r\n\x1a\n" and is_animated_png(path):
        return "apng"
    return "gif" if head[:6] in (b"GIF87a", b"GIF89a") else None


def file_url(path: Path) -> str:
    """Return ``path`` as an FFmpeg file URL: FFmpeg would take the ``a:`` of ``a:b.mp4`` for a protocol."""
    return f"file:{os.fspath(path)}"


def open_container(path: Path, kind: str, max_pixels: int) -> Any:
    """Open a PyAV container of format ``kind`` for reading; FFmpeg rejects frames of more than ``max_pixels``.

    The fixed format and the file-only protocol whitelist prevent the content from making FFmpeg open anything else.
    """
    import av

    # Opening may decode a frame to detect its format, so the limit must already be set.
    options = {"max_pixels": str(max_pixels), "protocol_whitelist": "file"}
    return av.open(file_url(path), format=kind, options=options, metadata_errors="replace")
