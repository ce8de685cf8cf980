"""Parse file structure without decoding pixels: number of frames, size, and whether the file is complete.

Decoders differ in how they handle truncated files (some stop silently) and how much they allocate for large declared
sizes; blocks, chunks and boxes reveal both before decoding. Data after the end of a file (a line of html, a camera's
trailer, padding) is ignored.
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
"""Most blocks, chunks or boxes of a file, or samples of a track: ten hours of frames at 60 per second."""
DEFAULT_DELAY = 0.1
"""Seconds for which a frame without a delay is shown, as in browsers and FFmpeg."""


class Cut(Exception):
    """The file ends before the structure it declares; ``frames`` complete frames precede the cut."""

    def __init__(self, before: str, frames: int = 0) -> None:
        super().__init__(before)
        self.frames = frames


class Damaged(Exception):
    """The structure is invalid; the argument says where."""


@dataclass(frozen=True)
class Animation:
    """A gif, animated webp or png: canvas in pixels, and seconds per frame.

    ``first`` is 1 if a png's default image is not part of the animation, else 0.
    """

    height: int
    width: int
    holds: tuple[float, ...]
    first: int = 0


def animation(path: Path, kind: str) -> Animation:
    """Return the frames of a "gif", "webp" or "apng" by its blocks or chunks; a still image has one frame.

    Raises `BadRequest` if the file is truncated or its structure is damaged.
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
        raise BadRequest(f"{path.name} contains no frames: it is damaged or cut short")
    return found


def cut_after_first_frame(path: Path, kind: str) -> str:
    """Describe where a "gif" or "apng" with a complete first frame is truncated; empty if it is not.

    A webp without its end cannot be decoded at all.
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
    """Raise `BadRequest` if a "mov", "matroska" or "avi" is truncated."""
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
    """Whether a png declares several frames, before its pixels."""
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


def _check_parts(parts: int) -> None:
    if parts > MAX_PARTS:
        raise Damaged(f"it has more than {MAX_PARTS:,} parts")


# ------------------------------------------------------------------------------------- animations


def _gif(data: Bytes) -> Animation:
    """Parse GIF89a blocks. Only the final ``;`` may be missing: many writers omit it."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at, delay = 13 + table_bytes(flags), 0
    holds: list[float] = []
    while at < len(data) and data[at] != 0x3B:
        _check_parts(len(holds))
        block = data[at]
        if block == 0x21 and at + 1 < len(data):
            if data[at + 1] == 0xF9 and at + 6 <= len(data):
                delay = struct.unpack_from("<H", data, at + 4)[0]
            at = past(data, at + 2, len(holds))
        elif block == 0x2C and at + 10 < len(data):
            at = past(data, at + 11 + table_bytes(data[at + 9]), len(holds))
            holds.append(delay / 100 or DEFAULT_DELAY)
            delay = 0
        elif block == 0:  # padding, between blocks or at the end
            run = data[at : at + 4096]
            at += len(run) - len(run.lstrip(b"\0"))
        elif block in (0x21, 0x2C):
            raise Cut(f"the end of frame {len(holds)}", len(holds))
        elif holds and data.find(b"\x21\xf9\x04", at) < 0:
            break  # data after the last frame of a file without a trailer
        else:
            raise Damaged(f"no block begins at byte {at:,}, after {len(holds)} frames")
    return Animation(height, width, tuple(holds))


def table_bytes(flags: int) -> int:
    """Size of the colour table that ``flags`` declare, in bytes."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def past(data: Bytes, at: int, frames: int = 0) -> int:
    """Return the end of the sub-blocks that begin at ``at``, after ``frames`` complete frames."""
    size = len(data)
    while at < size and (length := data[at]):
        at += 1 + length
    if at >= size:
        raise Cut("the end of its last frame", frames)
    return at + 1


def _webp(data: Bytes) -> Animation:
    """Parse a webp's RIFF chunks: canvas from VP8X, one ANMF per frame. A still image has canvas 0×0 (unknown)."""
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
            holds.append(milliseconds / 1000 or DEFAULT_DELAY)
    return Animation(height, width, tuple(holds) or (DEFAULT_DELAY,))


def _png(data: Bytes) -> Animation:
    """Parse an APNG's fcTL chunks; an image before the first of them is not part of the animation."""
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
                holds.append(numerator / (denominator or 100) or DEFAULT_DELAY)
            elif name == b"IDAT" and not holds:
                first = 1
    except Cut as cut:
        raise Cut(str(cut), len(holds) - 1) from cut  # the last one may be incomplete
    if len(holds) < declared:
        raise Cut(f"the last of its {declared:,} frames", len(holds))
    return Animation(height, width, tuple(holds[:declared]), first)


def chunks(data: Bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, first byte, length) of the chunks of a png, up to IEND."""
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
        _check_parts(count)


def riff(data: Bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, first byte, length) of the RIFF chunks between two offsets."""
    count = 0
    while at + 8 <= end:
        name, length = struct.unpack_from("<4sI", data, at)
        yield name, at + 8, length
        at, count = at + 8 + length + length % 2, count + 1
        _check_parts(count)


# -------------------------------------------------------------------------------------- containers


def _avi(data: Bytes) -> None:
    """Check that every RIFF of an avi (a long one has several) is complete."""
    at = 0
    while data[at : at + 4] == b"RIFF":
        length = struct.unpack_from("<I", data, at + 4)[0]
        if at + 8 + length > len(data):
            raise Cut("what its header declares")
        at += 8 + length + length % 2


def _mov(data: Bytes) -> None:
    """Check that the file contains every sample in an mp4's index and, if fragmented, every fragment."""
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
    """Yield (name, start of content, end) of boxes; the last may end after the file."""
    count = 0
    while at + 8 <= end:
        length, name = struct.unpack_from(">I4s", data, at)
        head = 8
        if length == 1 and at + 16 <= end:
            length, head = struct.unpack_from(">Q", data, at + 8)[0], 16
        if length == 0:  # "to the end of the file"
            length = end - at
        if length < head:
            return  # not a box but trailing data
        yield name, at + head, at + length
        at, count = at + length, count + 1
        _check_parts(count)


def _inside(data: Bytes, start: int, end: int, *names: bytes) -> list[tuple[int, int]]:
    """Return (first byte, end) of the boxes with this name, or path of names, inside another."""
    found = [(first, min(last, end)) for name, first, last in _boxes(data, start, end) if name == names[0]]
    if len(names) == 1:
        return found
    return [inner for box in found for inner in _inside(data, *box, *names[1:])]


def _end_of_samples(data: Bytes, start: int, end: int) -> int:
    """End of a track's last sample by its sample table (ISO/IEC 14496-12, 8.7); 0 if it has none."""
    table = {
        name: (first, last)
        for box in _inside(data, start, end, b"mdia", b"minf", b"stbl")
        for name, first, last in _boxes(data, *box)
    }
    offsets = table.get(b"stco") or table.get(b"co64")
    if offsets is None or b"stsz" not in table or b"stsc" not in table:
        return 0
    wide = b"stco" not in table
    chunks = _table(data, offsets, 8, ">u8" if wide else ">u4").astype(np.int64).clip(0, 2**62)
    runs = _table(data, table[b"stsc"], 8, ">u4", 3).reshape(-1, 3).astype(np.int64)
    if not len(chunks) or not len(runs):
        return 0
    which = np.arange(1, len(chunks) + 1)
    samples = runs[(np.searchsorted(runs[:, 0], which, side="right") - 1).clip(0), 1]
    constant, count = struct.unpack_from(">II", data, table[b"stsz"][0] + 4)
    if constant:
        # Uncompressed sound counts every sample, so there may be any number.
        return int(chunks[-1]) + constant if count else 0
    sizes = _table(data, table[b"stsz"], 12, ">u4").astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    last = np.cumsum(samples).clip(max=len(sizes))
    first = np.concatenate([[0], last[:-1]])
    return int((chunks + ends[last] - ends[first])[last > first].max(initial=0))


def _table(data: Bytes, box: tuple[int, int], head: int, kind: str, each: int = 1) -> np.ndarray:
    """Read a table box whose entry count is in the last four of its first ``head`` bytes."""
    start, end = box
    count = struct.unpack_from(">I", data, start + head - 4)[0] * each
    _check_parts(count)
    if start + head + count * np.dtype(kind).itemsize > end:
        raise Cut("the end of its index")
    return np.frombuffer(data[start + head : end], kind, count)


def _matroska(data: Bytes) -> None:
    """Check that the segment's declared end is inside the file; live recordings declare none."""
    length, at = _vint(data, 4)  # the EBML header, then the segment
    at += max(length, 0)
    if data[at : at + 4] != b"\x18\x53\x80\x67":
        return
    length, begin = _vint(data, at + 4)
    if length >= 0 and begin + length > len(data):
        raise Cut("the end of its segment")


def _vint(data: Bytes, at: int) -> tuple[int, int]:
    """Read an EBML variable-length integer and the offset after it; -1 for "unknown"."""
    if at >= len(data) or data[at] == 0:
        return -1, at
    width = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1)
    return -1 if value == (1 << 7 * width) - 1 else value, at + width
