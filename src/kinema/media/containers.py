"""Whether a file can be read, what it is by its first bytes, and whether all of it is there."""

from __future__ import annotations

import difflib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kinema.schema import BadRequest


def existing(path: Path) -> Path:
    """``path`` if it is there, may be read and is not an empty file; else a `BadRequest` with the nearest names."""
    try:
        if path.exists():
            if path.is_dir():
                next(path.iterdir(), None)
                return path
            with path.open("rb") as file:
                if not file.read(1):
                    raise BadRequest(f"{path} is empty (0 bytes); expected a picture or a video")
            return path
        if not path.parent.is_dir():
            raise BadRequest(f"there is no file {path}: the folder {path.parent} does not exist")
        names = [p.name for p in path.parent.iterdir() if not p.name.startswith(".")]
    except OSError as error:  # may not be read, no plain file, or a name too long for a file
        raise BadRequest(f"cannot open {str(path)[:80]}: {error.strerror}") from error
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    raise BadRequest(f"there is no file {path}" + (f"; did you mean {', '.join(near)}?" if near else ""))


def sniff(path: Path) -> str | None:
    """The container by its first bytes, as the demuxer's name; None is none that we open."""
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
    return "gif" if head[:6] in (b"GIF87a", b"GIF89a") else None


def check_whole(path: Path, kind: str) -> None:
    """Refuse a file whose own structure says that its end is missing.

    Decoders differ in what they do with a file cut short: some stop in silence. The boxes say it.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if kind == "mov":
            needed, seen = _end_of_boxes(file.read, file.seek, size), "the end of its last box"
        elif kind == "avi":
            needed, seen = struct.unpack("<I", file.read(8)[4:])[0] + 8, "what its header declares"
        elif kind == "gif":
            file.seek(max(0, size - 512))
            needed = size if file.read().rstrip(b"\x00").endswith(b";") else size + 1
            seen = "its end mark"
        elif kind == "matroska":
            needed, seen = _end_of_segment(file.read(4096)), "the end of its segment"
        else:
            return
    if needed > size:
        raise BadRequest(f"{path.name} is cut short: it ends at byte {size:,}, before {seen}; get the whole file")


def _end_of_boxes(read: Callable[[int], bytes], seek: Callable[[int], Any], size: int) -> int:
    """Where the top-level boxes of an mp4 end, or one past the file where the ``moov`` box is missing."""
    at, has_index = 0, False
    while at + 8 <= size:
        seek(at)
        length, name = struct.unpack(">I4s", read(8))
        if length == 1 and at + 16 <= size:
            length = struct.unpack(">Q", read(8))[0]
        has_index |= name == b"moov"
        if length == 0:  # "to the end of the file"
            at = size
        elif length < 8:
            break  # trailing bytes that are no box
        else:
            at += length
    return at if has_index else max(at, size + 1)


def _end_of_segment(head: bytes) -> int:
    """Where the segment of a matroska file ends by its own word; 0 where a live recording left it open."""
    at = 4
    length, at = _vint(head, at)  # the EBML header, then the segment
    at += length
    if head[at : at + 4] != b"\x18\x53\x80\x67":
        return 0
    length, begin = _vint(head, at + 4)
    return 0 if length < 0 else begin + length


def _vint(head: bytes, at: int) -> tuple[int, int]:
    """An EBML variable-length number and where the next byte is; -1 for "unknown"."""
    if at >= len(head) or head[at] == 0:
        return -1, at
    width = 9 - head[at].bit_length()
    value = int.from_bytes(head[at : at + width], "big") & ((1 << 7 * width) - 1)
    return -1 if value == (1 << 7 * width) - 1 else value, at + width
