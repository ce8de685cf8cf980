"""Whether a file can be read, what it is by its first bytes, and how FFmpeg is given its name."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from kinema import bounds
from kinema.media.structure import is_animated_png
from kinema.schema import BadRequest


def existing(path: Path) -> Path:
    """``path`` if it is a folder or a regular file that may be read and is not empty.

    Else a `BadRequest`: with the nearest names where it is missing, and without a wait where it is a pipe or a device.
    """
    told = bounds.printable(str(path), 200)
    try:
        if path.exists():
            if path.is_dir():
                next(path.iterdir(), None)
                return path
            if not bounds.is_regular(path):
                raise BadRequest(
                    f"{told} is not a regular file (but a pipe, socket or device); expected a picture or a video"
                )
            with path.open("rb") as file:
                if not file.read(1):
                    raise BadRequest(f"{told} is empty (0 bytes); expected a picture or a video")
            return path
        if not path.parent.is_dir():
            raise BadRequest(f"there is no file {told}: its folder does not exist")
        names = [p.name for p in path.parent.iterdir() if not p.name.startswith(".")]
    except OSError as error:  # may not be read, no plain file, or a name too long for a file
        raise BadRequest(f"cannot open {bounds.printable(str(path), 80)}: {error.strerror}") from error
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    meant = f"; did you mean {bounds.printable(', '.join(near), 150)}?" if near else ""
    raise BadRequest(f"there is no file {told}{meant}")


def sniff(path: Path) -> str | None:
    """The container by its first bytes, as its demuxer is called; "webp" and "apng" are Pillow's, None is neither's."""
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


def located(path: Path) -> str:
    """A path as FFmpeg's own address of a plain file: alone it would read ``a:b.mp4`` as a protocol's."""
    return f"file:{os.fspath(path)}"


def opened(path: Path, kind: str, max_pixels: int) -> Any:
    """A PyAV container to read, of the format ``kind``; frames of more than ``max_pixels`` are refused by FFmpeg.

    A format of one file, and no protocol but that of plain files: nothing inside can make FFmpeg open anything else.
    """
    import av

    # Opening may decode a frame to learn its format, so the limit has to be there before it.
    options = {"max_pixels": str(max_pixels), "protocol_whitelist": "file"}
    return av.open(located(path), format=kind, options=options, metadata_errors="replace")
