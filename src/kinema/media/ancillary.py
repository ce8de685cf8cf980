"""Image metadata (text chunks, comments, ICC profiles, Exif), found without decoding pixels.

Pillow rejects a whole png when one text chunk decompresses past its limit, and takes quadratic time over gif comments.
`without_clutter` strips such metadata, which does not affect the pixels, before Pillow opens the file.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from kinema.media.structure import Bytes, Cut, Damaged, chunks, mapped, past, riff, table_bytes

MAX_FILE = 2**29
"""Largest file, in bytes, that is copied in order to strip metadata."""
MAX_PROFILE = 2**20
"""Largest decompressed ICC profile in a png, in bytes; the largest table-based profiles are half of that."""
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_MOVING = (b"acTL", b"fcTL", b"fdAT")


def without_clutter(path: Path) -> io.BytesIO | None:
    """Return the png or gif at ``path`` without texts, comments and damaged ancillary chunks; None if it has none.

    Pixels and the chunks that affect their display are unchanged. A file with a damaged structure is left as is.
    """
    with path.open("rb") as file:
        head = file.read(8)
    find = _clutter_of_png if head == b"\x89PNG\r\n\x1a\n" else _clutter_of_gif if head[:4] == b"GIF8" else None
    if find is None or path.stat().st_size > MAX_FILE:
        return None
    with mapped(path) as data:
        cuts = list(find(data))
        if not cuts:
            return None
        stripped, at = io.BytesIO(), 0
        for start, end in cuts:
            stripped.write(data[at:start])
            at = end
        stripped.write(data[at:])
    stripped.seek(0)
    return stripped


def png_texts(path: Path, keyword: str, most: int) -> Iterator[bytes]:
    """Yield the texts with this keyword in a png that are at most ``most`` bytes, in file order."""
    with mapped(path) as data:
        try:
            for name, start, length in chunks(data):
                if name in _TEXTS and data[start : start + len(keyword) + 1] == keyword.encode() + b"\0":
                    text = _text(name, data[start + len(keyword) + 1 : start + length], most)
                    if text is not None:
                        yield text
        except (Cut, Damaged):
            return


def gif_comments(path: Path, most: int) -> Iterator[bytes]:
    """Yield the comments of at most ``most`` bytes before the first frame of a gif."""
    with mapped(path) as data:
        for start, end in _comments(data):
            if end - start <= most + most // 128:
                yield _joined(data[start + 2 : end])


def webp_exif(path: Path, most: int) -> bytes | None:
    """Return the Exif block of a webp; None if it is missing or larger than ``most`` bytes."""
    with mapped(path) as data:
        try:
            for name, start, length in riff(data, 12, len(data)):
                if name == b"EXIF":
                    return data[start : start + length] if length <= most else None
        except Damaged:
            return None
    return None


# ------------------------------------------------------------------------------------------- png


def _clutter_of_png(data: Bytes) -> Iterator[tuple[int, int]]:
    try:
        for name, start, length in chunks(data):
            ancillary = name[:1].islower() and name not in _MOVING
            if ancillary and not _affects_display(name, data, start, length):
                yield start - 8, start + length + 4
    except (Cut, Damaged):
        return


def _affects_display(name: bytes, data: Bytes, start: int, length: int) -> bool:
    """Whether an ancillary chunk is undamaged and affects how the pixels are displayed."""
    if name not in (b"tRNS", b"gAMA", b"sRGB", b"iCCP", b"eXIf"):
        return False
    content = data[start : start + length]
    if zlib.crc32(content, zlib.crc32(name)).to_bytes(4, "big") != data[start + length : start + length + 4]:
        return False
    if name == b"tRNS":
        return length >= {0: 2, 2: 6}.get(data[25], 1)  # by the colour type of IHDR
    if name == b"iCCP":
        end = content.find(b"\0")
        packed = content[end + 1 :]
        return 0 < end < 80 and packed[:1] == b"\0" and _decompressed(packed[1:], MAX_PROFILE) is not None
    return length == {b"gAMA": 4, b"sRGB": 1}.get(name, length)


def _text(name: bytes, content: bytes, most: int) -> bytes | None:
    if name == b"tEXt":
        return content if len(content) <= most else None
    if name == b"zTXt":
        return _decompressed(content[1:], most)
    packed = content[:1] == b"\1"
    parts = content[2:].split(b"\0", 2)  # the language, the keyword in it, the text
    if len(parts) < 3:
        return None
    return _decompressed(parts[2], most) if packed else parts[2] if len(parts[2]) <= most else None


def _decompressed(packed: bytes, most: int) -> bytes | None:
    """Decompress zlib data; None if it is damaged or yields more than ``most`` bytes."""
    engine = zlib.decompressobj()
    try:
        found = engine.decompress(packed, most)
    except zlib.error:
        return None
    return found if engine.eof else None


# ------------------------------------------------------------------------------------------- gif


def _clutter_of_gif(data: Bytes) -> Iterator[tuple[int, int]]:
    yield from _comments(data, everywhere=True)


def _comments(data: Bytes, *, everywhere: bool = False) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the comment blocks before the first frame of a gif, or of all of them if ``everywhere``."""
    at = 13 + table_bytes(data[10]) if len(data) > 13 else len(data)
    try:
        while at + 10 < len(data):
            start = at
            if data[at] == 0x21:
                at = past(data, at + 2)
                if data[start + 1] == 0xFE:
                    yield start, at
            elif data[at] == 0x2C and everywhere:
                at = past(data, at + 11 + table_bytes(data[at + 9]))
            else:
                return
    except Cut:
        return


def _joined(blocks: bytes) -> bytes:
    """Concatenate the contents of length-prefixed sub-blocks."""
    at, found = 0, []
    while at < len(blocks) and blocks[at]:
        found.append(blocks[at + 1 : at + 1 + blocks[at]])
        at += 1 + blocks[at]
    return b"".join(found)
