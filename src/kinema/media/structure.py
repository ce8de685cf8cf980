"""What a file's own structure says of it, found without decoding a pixel: how many frames, how large, and all there?

Decoders differ in what they do with a file cut short (some stop in silence) and in what they allocate for one that
declares a lot. The blocks, chunks and boxes tell both before anything is decoded. What follows the end of a file
(a line of html, a camera's trailer, padding) is no part of it.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kinema.schema import BadRequest

Bytes = bytes | mmap.mmap

MAX_PARTS = 2**21
"""Blocks, chunks or boxes of one file, and samples of one track: ten hours of frames at 60 per second."""
UNTOLD = 0.1
"""Seconds that a frame without a delay of its own is shown, as in browsers and FFmpeg."""


class Cut(Exception):
    """The file ends before what its structure promises; ``frames`` are whole ahead of that."""

    def __init__(self, before: str, frames: int = 0) -> None:
        super().__init__(before)
        self.frames = frames


class Damaged(Exception):
    """The structure makes no sense; the argument says where."""


@dataclass(frozen=True)
class Animation:
    """A gif, animated webp or png: its canvas in pixels, and for how many seconds each frame is shown.

    ``first`` is 1 where a png's default picture is no frame of the animation, else 0.
    """

    height: int
    width: int
    holds: tuple[float, ...]
    first: int = 0


def animation(path: Path, kind: str) -> Animation:
    """The frames of a "gif", "webp" or "apng" by its blocks or chunks; a still one has one frame.

    Raises `BadRequest` where the file is cut short or its structure is damaged.
    """
    with mapped(path) as data:
        try:
            found = {"gif": _gif, "webp": _webp, "apng": _png}[kind](data)
        except Cut as cut:
            raise _cut(path, len(data), str(cut)) from cut
        except Damaged as damage:
            raise BadRequest(f"{path.name} is damaged: {damage}") from damage
        except (struct.error, IndexError) as error:
            raise _cut(path, len(data), "its first frame") from error
    if not found.holds:
        raise BadRequest(f"{path.name} holds no frames: it is damaged or cut short")
    return found


def cut_later(path: Path, kind: str) -> str:
    """Where a "gif" or "apng" whose first frame is whole is cut short, as a sentence; empty where it is another.

    A webp is not decoded at all where its end is missing.
    """
    with mapped(path) as data:
        try:
            {"gif": _gif, "apng": _png}.get(kind, _webp)(data)
        except Cut as cut:
            return str(_cut(path, len(data), str(cut))) if cut.frames > 0 else ""
        except (Damaged, struct.error, IndexError):
            return ""
    return ""


def check_whole(path: Path, kind: str) -> None:
    """Raise `BadRequest` for a "mov", "matroska" or "avi" whose end is missing."""
    with mapped(path) as data:
        try:
            {"mov": _mov, "matroska": _matroska, "avi": _avi}[kind](data)
        except Cut as cut:
            raise _cut(path, len(data), str(cut)) from cut
        except Damaged as damage:
            raise BadRequest(f"{path.name} is damaged: {damage}") from damage
        except (struct.error, IndexError) as error:
            raise BadRequest(f"{path.name} is damaged: its index cannot be read") from error


def is_animated_png(path: Path) -> bool:
    """Whether a png says, before its pixels, that it has several frames."""
    with mapped(path) as data:
        try:
            for name, start, _ in chunks(data):
                if name == b"acTL":
                    return bool(struct.unpack_from(">I", data, start)[0] > 1)
                if name in (b"IDAT", b"IEND"):
                    return False
        except (Cut, Damaged, struct.error):
            return False
    return False


def mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _cut(path: Path, size: int, before: str) -> BadRequest:
    return BadRequest(f"{path.name} is cut short: it ends at byte {size:,}, before {before}; get the whole file")


def _counted(parts: int) -> None:
    if parts > MAX_PARTS:
        raise Damaged(f"it has more than {MAX_PARTS:,} parts")


# --------------------------------------------------------------------------------- moving pictures


def _gif(data: Bytes) -> Animation:
    """GIF89a, block by block. Only the ``;`` at the end may be missing: many writers forget it."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at, delay = 13 + table_bytes(flags), 0
    holds: list[float] = []
    while at < len(data) and data[at] != 0x3B:
        _counted(len(holds))
        block = data[at]
        if block == 0x21 and at + 1 < len(data):
            if data[at + 1] == 0xF9 and at + 6 <= len(data):
                delay = struct.unpack_from("<H", data, at + 4)[0]
            at = past(data, at + 2, len(holds))
        elif block == 0x2C and at + 10 < len(data):
            at = past(data, at + 11 + table_bytes(data[at + 9]), len(holds))
            holds.append(delay / 100 or UNTOLD)
            delay = 0
        elif block == 0:  # padding, between blocks or at the end
            run = data[at : at + 4096]
            at += len(run) - len(run.lstrip(b"\0"))
        elif block in (0x21, 0x2C):
            raise Cut(f"the end of frame {len(holds)}", len(holds))
        elif holds and data.find(b"\x21\xf9\x04", at) < 0:
            break  # what follows the last frame, where the end mark is missing
        else:
            raise Damaged(f"no block begins at byte {at:,}, after {len(holds)} frames")
    return Animation(height, width, tuple(holds))


def table_bytes(flags: int) -> int:
    """Bytes of the colour table that ``flags`` announce."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def past(data: Bytes, at: int, frames: int = 0) -> int:
    """Where the sub-blocks that begin at ``at``, after so many whole frames, end."""
    size = len(data)
    while at < size and (length := data[at]):
        at += 1 + length
    if at >= size:
        raise Cut("the end of its last frame", frames)
    return at + 1


def _webp(data: Bytes) -> Animation:
    """RIFF chunks of a webp: the canvas of VP8X, and the ANMF of each frame. The canvas of a still is 0×0: untold."""
    end = struct.unpack_from("<I", data, 4)[0] + 8
    if end > len(data):
        raise Cut("what its header declares")
    height = width = 0
    holds = []
    for name, start, length in riff(data, 12, end):
        if name == b"VP8X":
            width, height = (1 + int.from_bytes(data[start + at : start + at + 3], "little") for at in (4, 7))
        elif name == b"ANMF" and length >= 16:
            milliseconds = int.from_bytes(data[start + 12 : start + 15], "little")
            holds.append(milliseconds / 1000 or UNTOLD)
    return Animation(height, width, tuple(holds) or (UNTOLD,))


def _png(data: Bytes) -> Animation:
    """The fcTL chunks of an APNG; a picture before the first of them is not part of the animation."""
    height = width = declared = first = 0
    holds: list[float] = []
    try:
        for name, start, _ in chunks(data):
            if name == b"IHDR":
                width, height = struct.unpack_from(">II", data, start)
            elif name == b"acTL":
                declared = struct.unpack_from(">I", data, start)[0]
            elif name == b"fcTL":
                numerator, denominator = struct.unpack_from(">HH", data, start + 20)
                holds.append(numerator / (denominator or 100) or UNTOLD)
            elif name == b"IDAT" and not holds:
                first = 1
    except Cut as cut:
        raise Cut(str(cut), len(holds) - 1) from cut  # the last of them may be what is cut
    if len(holds) < declared:
        raise Cut(f"the last of its {declared:,} frames", len(holds))
    return Animation(height, width, tuple(holds[:declared]), first)


def chunks(data: Bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, first byte, length) of the chunks of a png, up to its IEND."""
    at, count = 8, 0
    while True:
        if at + 12 > len(data):
            raise Cut("its IEND chunk")
        length, name = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            raise Cut(f"the end of its {name.decode('latin-1')!r} chunk")
        yield name, at + 8, length
        if name == b"IEND":
            return
        at, count = at + 12 + length, count + 1
        _counted(count)


def riff(data: Bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, first byte, length) of the chunks between two places of a RIFF file."""
    count = 0
    while at + 8 <= end:
        name, length = struct.unpack_from("<4sI", data, at)
        yield name, at + 8, length
        at, count = at + 8 + length + length % 2, count + 1
        _counted(count)


# -------------------------------------------------------------------------------------- containers


def _avi(data: Bytes) -> None:
    """Every RIFF of an avi (a long one has several) lies in the file."""
    at = 0
    while data[at : at + 4] == b"RIFF":
        length = struct.unpack_from("<I", data, at + 4)[0]
        if at + 8 + length > len(data):
            raise Cut("what its header declares")
        at += 8 + length + length % 2


def _mov(data: Bytes) -> None:
    """Every sample that the index of an mp4 names lies in the file; where fragments hold them, every fragment does."""
    has_index = has_fragments = False
    for name, start, end in _boxes(data, 0, len(data)):
        has_fragments |= name == b"moof"
        if name == b"moov":
            if end > len(data):
                raise Cut("the end of its index")
            has_index = True
            needed = max((_end_of_samples(data, *track) for track in _inside(data, start, end, b"trak")), default=0)
            if needed > len(data):
                raise Cut("the end of its last frame")
        elif end > len(data) and has_fragments and name in (b"moof", b"mdat"):
            raise Cut("the end of its last fragment")
    if not has_index:
        raise Cut("its index (the moov box)")


def _boxes(data: Bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, first byte of the content, where it ends) of boxes; the last may end after the file."""
    count = 0
    while at + 8 <= end:
        length, name = struct.unpack_from(">I4s", data, at)
        head = 8
        if length == 1 and at + 16 <= end:
            length, head = struct.unpack_from(">Q", data, at + 8)[0], 16
        if length == 0:  # "to the end of the file"
            length = end - at
        if length < head:
            return  # no box: what comes after the last one
        yield name, at + head, at + length
        at, count = at + length, count + 1
        _counted(count)


def _inside(data: Bytes, start: int, end: int, *names: bytes) -> list[tuple[int, int]]:
    """(first byte, end) of the boxes of this name, or of this path of names, inside another."""
    found = [(first, min(last, end)) for name, first, last in _boxes(data, start, end) if name == names[0]]
    if len(names) == 1:
        return found
    return [inner for box in found for inner in _inside(data, *box, *names[1:])]


def _end_of_samples(data: Bytes, start: int, end: int) -> int:
    """Where the last sample of a track ends by its sample table (ISO/IEC 14496-12, 8.7); 0 where it has none."""
    table = {
        name: (first, last)
        for box in _inside(data, start, end, b"mdia", b"minf", b"stbl")
        for name, first, last in _boxes(data, *box)
    }
    places = table.get(b"stco") or table.get(b"co64")
    if places is None or b"stsz" not in table or b"stsc" not in table:
        return 0
    wide = b"stco" not in table
    chunks = _numbers(data, places, 8, ">u8" if wide else ">u4").astype(np.int64).clip(0, 2**62)
    runs = _numbers(data, table[b"stsc"], 8, ">u4", 3).reshape(-1, 3).astype(np.int64)
    if not len(chunks) or not len(runs):
        return 0
    which = np.arange(1, len(chunks) + 1)
    held = runs[(np.searchsorted(runs[:, 0], which, side="right") - 1).clip(0), 1]
    constant, count = struct.unpack_from(">II", data, table[b"stsz"][0] + 4)
    if constant:
        # Sound without compression counts each of its samples, of which a file has any number.
        return int(chunks[-1]) + constant if count else 0
    sizes = _numbers(data, table[b"stsz"], 12, ">u4").astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    last = np.cumsum(held).clip(max=len(sizes))
    first = np.concatenate([[0], last[:-1]])
    return int((chunks + ends[last] - ends[first])[last > first].max(initial=0))


def _numbers(data: Bytes, box: tuple[int, int], head: int, kind: str, each: int = 1) -> np.ndarray:
    """The numbers of a table box, after a count that stands right before ``head`` bytes are over."""
    start, end = box
    count = struct.unpack_from(">I", data, start + head - 4)[0] * each
    _counted(count)
    if start + head + count * np.dtype(kind).itemsize > end:
        raise Cut("the end of its index")
    return np.frombuffer(data[start + head : end], kind, count)


def _matroska(data: Bytes) -> None:
    """The segment ends inside the file by its own word; a live recording leaves that open."""
    length, at = _vint(data, 4)  # the EBML header, then the segment
    at += max(length, 0)
    if data[at : at + 4] != b"\x18\x53\x80\x67":
        return
    length, begin = _vint(data, at + 4)
    if length >= 0 and begin + length > len(data):
        raise Cut("the end of its segment")


def _vint(data: Bytes, at: int) -> tuple[int, int]:
    """An EBML variable-length number and where the next byte is; -1 for "unknown"."""
    if at >= len(data) or data[at] == 0:
        return -1, at
    width = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)
    return -1 if value == (1 << 7 * width) - 1 else value, at + width
