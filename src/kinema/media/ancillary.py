"""What stands beside the pixels of a picture: texts, comments, profiles and Exif, found without decoding a pixel.

Pillow refuses a whole png for one text that unpacks to more than it likes, and takes quadratic time over the comment of
a gif. Neither says anything about the pixels: `without_clutter` leaves them out before Pillow sees the file.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from kinema.media.structure import Bytes, Cut, Damaged, chunks, mapped, past, riff, table_bytes

MAX_FILE = 2**29
"""Bytes of a file that is copied to leave something out."""
MAX_PROFILE = 2**20
"""Bytes of an ICC profile in a png once it is unpacked; the largest with tables have half of that."""
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_MOVING = (b"acTL", b"fcTL", b"fdAT")


def without_clutter(path: Path) -> io.BytesIO | None:
    """The png or gif at ``path`` without texts, comments and damaged ancillary chunks; None where nothing is left out.

    The pixels, and the chunks that say how to show them, are those of the file. A damaged structure stays as it is.
    """
    with path.open("rb") as file:
        head = file.read(8)
    find = _clutter_of_png if head == b"\x89PNG\r\n\x1a\n" else _clutter_of_gif if head[:4] == b"GIF8" else None
    if find is None or path.stat().st_size > MAX_FILE:
        return None
    with mapped(path) as data:
        left_out = list(find(data))
        if not left_out:
            return None
        kept, at = io.BytesIO(), 0
        for start, end in left_out:
            kept.write(data[at:start])
            at = end
        kept.write(data[at:])
    kept.seek(0)
    return kept


def png_texts(path: Path, keyword: str, most: int) -> Iterator[bytes]:
    """The texts with this keyword in a png: those of at most ``most`` bytes, in the order of the file."""
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
    """The comments before the first frame of a gif: those of at most ``most`` bytes."""
    with mapped(path) as data:
        for start, end in _comments(data):
            if end - start <= most + most // 128:
                yield _joined(data[start + 2 : end])


def webp_exif(path: Path, most: int) -> bytes | None:
    """The Exif block of a webp, where it has one of at most ``most`` bytes."""
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
            if ancillary and not _serves(name, data, start, length):
                yield start - 8, start + length + 4
    except (Cut, Damaged):
        return


def _serves(name: bytes, data: Bytes, start: int, length: int) -> bool:
    """Whether an ancillary chunk is whole, and one that says how the pixels are shown."""
    if name not in (b"tRNS", b"gAMA", b"sRGB", b"iCCP", b"eXIf"):
        return False
    held = data[start : start + length]
    if zlib.crc32(held, zlib.crc32(name)).to_bytes(4, "big") != data[start + length : start + length + 4]:
        return False
    if name == b"tRNS":
        return length >= {0: 2, 2: 6}.get(data[25], 1)  # by the colour type of IHDR
    if name == b"iCCP":
        packed = held[held.find(b"\0") + 1 :]
        return 0 < held.find(b"\0") < 80 and packed[:1] == b"\0" and _unpacked(packed[1:], MAX_PROFILE) is not None
    return length == {b"gAMA": 4, b"sRGB": 1}.get(name, length)


def _text(name: bytes, held: bytes, most: int) -> bytes | None:
    if name == b"tEXt":
        return held if len(held) <= most else None
    if name == b"zTXt":
        return _unpacked(held[1:], most)
    packed = held[:1] == b"\1"
    parts = held[2:].split(b"\0", 2)  # the language, the keyword in it, the text
    if len(parts) < 3:
        return None
    return _unpacked(parts[2], most) if packed else parts[2] if len(parts[2]) <= most else None


def _unpacked(packed: bytes, most: int) -> bytes | None:
    """What zlib packed, or None where that is damaged or more than ``most`` bytes."""
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
    """(first byte, end) of the comment blocks before the first frame of a gif, or of all."""
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
    """The content of sub-blocks, each of which begins with its length."""
    at, found = 0, []
    while at < len(blocks) and blocks[at]:
        found.append(blocks[at + 1 : at + 1 + blocks[at]])
        at += 1 + blocks[at]
    return b"".join(found)
