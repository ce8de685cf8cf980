"""Rotated photographs, with Exif as phones and repair tools leave it."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kinema.media.read import facts, read_image

Entry = tuple[int, int, int, bytes]
SIDE: Entry = (0x0112, 3, 1, struct.pack("<H", 6))


def directory(entries: list[Entry], at: int) -> bytes:
    body, table, after = b"", struct.pack("<H", len(entries)), at + 6 + 12 * len(entries)
    for tag, kind, count, data in entries:
        place = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", after + len(body))
        body += data if len(data) > 4 else b""
        table += struct.pack("<HHI", tag, kind, count) + place
    return table + bytes(4) + body


def exif(first: list[Entry], inner: list[Entry] | None = None) -> bytes:
    if inner is not None:
        size = len(directory([*first, (0x8769, 4, 1, bytes(4))], 8))
        first = [*first, (0x8769, 4, 1, struct.pack("<I", 8 + size))]
    return b"Exif\0\0II*\0\x08\0\0\0" + directory(first, 8) + (directory(inner, 8 + size) if inner is not None else b"")


LEGIBLE = {
    "as it should be": exif([SIDE]),
    "a negative fraction": exif([SIDE], [(0x9204, 10, 1, struct.pack("<2i", -1, 0))]),
    "two resolutions": exif([SIDE, (0x011A, 5, 2, struct.pack("<4I", 72, 1, 72, 1))]),
    "a value that is cut": exif([SIDE], [(0x927C, 7, 5000, b"a maker's note")]),
    "an orientation of 32 bits": exif([(0x0112, 4, 1, struct.pack("<I", 6))]),
    "two orientations": exif([(0x0112, 3, 2, struct.pack("<2H", 6, 6))]),
    "its mark twice": b"Exif\0\0" + exif([SIDE]),
    "a text of the wrong type": exif([(0x010F, 12, 1, struct.pack("<d", float("nan"))), SIDE]),
    "a directory that leads to itself": exif([SIDE, (0x8769, 4, 1, struct.pack("<I", 8))]),
}
LOST = {
    "nothing": b"Exif\0\0",
    "noise": b"Exif\0\0" + bytes(range(200)),
    "a directory past the end": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "more entries than bytes": b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
    "an orientation of 99": exif([(0x0112, 3, 1, struct.pack("<H", 99))]),
    "an orientation of text": exif([(0x0112, 2, 4, b"six\0")]),
    "an orientation of no values": exif([(0x0112, 3, 0, bytes(4))]),
}


def photograph(path: Path, exif: bytes) -> None:
    """48×24: red on the left, blue on the right."""
    levels = np.zeros((24, 48, 3), np.uint8)
    levels[:, :24, 0] = levels[:, 24:, 2] = 250
    Image.fromarray(levels).save(path, exif=exif, **({"quality": 98} if path.suffix == ".jpg" else {}))


@pytest.mark.parametrize("fault", LEGIBLE)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_a_photograph_is_upright_despite_odd_exif(tmp_path: Path, name: str, fault: str) -> None:
    photograph(tmp_path / name, LEGIBLE[fault])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(tmp_path / name)[0, :, 0]
    assert image.shape == (3, 48, 24)
    assert image[0, 8, 12] > 0.8 > image[0, 40, 12]
    assert image[2, 8, 12] < -0.8 < image[2, 40, 12]


@pytest.mark.parametrize("fault", LOST)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_an_unreadable_orientation_is_ignored(tmp_path: Path, name: str, fault: str) -> None:
    photograph(tmp_path / name, LOST[fault])
    image = read_image(tmp_path / name)[0, :, 0]
    assert image.shape == (3, 24, 48)
    assert image[0, 12, 8] > 0.8


def test_a_damaged_second_tiff_page_is_ignored(tmp_path: Path) -> None:
    page = Image.new("RGB", (6, 4), (200, 100, 50))
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
    raw = bytearray((tmp_path / "a.tif").read_bytes())
    width = struct.pack("<HHI", 256, 4, 1)
    at = raw.rindex(width)
    assert at != raw.index(width)
    raw[at : at + 2] = struct.pack("<H", 254)  # a page without a width
    (tmp_path / "a.tif").write_bytes(raw)
    assert facts(tmp_path / "a.tif") == {"codec": "tiff", "frames": 1, "width": 6, "height": 4}
