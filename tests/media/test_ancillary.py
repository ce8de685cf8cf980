"""Unusual, oversized or damaged metadata does not prevent images from being read."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features

from kinema.media.ancillary import without_clutter
from kinema.media.metadata import find_recipe
from kinema.media.read import facts, read_image, read_video
from kinema.schema import BadRequest

PIXELS = np.arange(12 * 20 * 3, dtype=np.uint8).reshape(12, 20, 3)
LONG = b"x" * 1_350_000


def chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


BOMB = zlib.compress(bytes(2**26))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ODD = {
    "xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LONG)),
    "long text": chunk(b"tEXt", b"a\0" + LONG),
    "profile": chunk(b"iCCP", b"a\0\0" + zlib.compress(SRGB + LONG)),
    "profile bomb": chunk(b"iCCP", b"a\0\0" + BOMB),
    "text bomb": chunk(b"zTXt", b"a\0\0" + BOMB),
    "many texts": b"".join(chunk(b"zTXt", b"%d\0\0" % i + zlib.compress(bytes(2**20 - 1))) for i in range(70)),
    "wrong checksum": chunk(b"tEXt", b"a\0b", crc=1),
    "profile without a name": chunk(b"iCCP", b"a"),
    "profile of another packing": chunk(b"iCCP", b"a\0\7" + BOMB[:50]),
    "short gamma": chunk(b"gAMA", b"\0"),
    "short rendering intent": chunk(b"sRGB", b""),
    "short transparency": chunk(b"tRNS", b"\0"),
    "short sizes": chunk(b"pHYs", b"\0") + chunk(b"cHRM", b"\0"),
    "exif": chunk(b"eXIf", b"MM\0*" + b"\xff" * 2_000_000),
}


def png(path: Path, odd: bytes, *, last: bool = False, moving: bool = False) -> Path:
    image = Image.fromarray(PIXELS)
    more = {"save_all": True, "append_images": [Image.fromarray(PIXELS[::-1].copy())], "duration": 125}
    image.save(path, "PNG", **(more if moving else {}))
    whole = path.read_bytes()
    at = len(whole) - 12 if last else 33
    path.write_bytes(whole[:at] + odd + whole[at:])
    return path


@pytest.mark.parametrize("last", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", ODD)
def test_a_png_is_read_despite_odd_metadata(tmp_path: Path, name: str, last: bool) -> None:
    path = png(tmp_path / "a.png", ODD[name], last=last)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_image(path)
        assert facts(path)["frames"] == 1
        assert find_recipe(path) is None
    assert np.array_equal(((found[0, :, 0].permute(1, 2, 0) + 1) * 127.5).round().numpy(), PIXELS)


@pytest.mark.parametrize("name", ODD)
def test_an_animated_png_is_read_despite_odd_metadata(tmp_path: Path, name: str) -> None:
    path = png(tmp_path / "a.png", ODD[name], moving=True)
    found = read_video(path).video
    assert found.shape[2] == 2
    assert torch.equal(found[:, :, 1], found[:, :, 0].flip(-2))
    assert facts(path)["frames"] == 2


def test_chunks_that_affect_display_are_kept(tmp_path: Path) -> None:
    useful = chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"iCCP", b"a\0\0" + zlib.compress(SRGB))
    assert without_clutter(png(tmp_path / "a.png", useful)) is None
    left = without_clutter(png(tmp_path / "b.png", useful + ODD["wrong checksum"]))
    assert left is not None
    assert left.getvalue() == (tmp_path / "a.png").read_bytes()


def test_a_gif_is_read_without_its_long_comment(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.gif", comment=LONG)
    left = without_clutter(tmp_path / "a.gif")
    assert left is not None
    assert len(left.getvalue()) < 2000
    assert read_image(tmp_path / "a.gif").shape[-2:] == (12, 20)
    assert find_recipe(tmp_path / "a.gif") is None


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["jpeg", "webp", "tiff"])
def test_other_images_with_large_metadata_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    Image.fromarray(PIXELS).save(
        path, icc_profile=SRGB + LONG, xmp=LONG[:60_000], exif=b"Exif\0\0MM\0*" + b"\xff" * 60_000
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).shape[-2:] == (12, 20)
        assert facts(path)["frames"] == 1
        assert find_recipe(path) is None


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["a.webp", "a.jpg", "a.png", "a.tiff"])
def test_broken_exif_causes_no_warning(tmp_path: Path, name: str) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x03\0" + b"\x12\x01\x03\0\xff\xff\0\0\xff\xff\xff\xff" * 2 + b"\x69\x87"
    Image.fromarray(PIXELS).save(tmp_path / name, exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / name).shape[-2:] == (12, 20)
        assert facts(tmp_path / name)["frames"] == 1
        assert find_recipe(tmp_path / name) is None


def test_a_damaged_image_raises_our_own_error(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.webp")
    (tmp_path / "a.webp").write_bytes((tmp_path / "a.webp").read_bytes()[:60])
    Image.fromarray(PIXELS).save(tmp_path / "a.tiff")
    (tmp_path / "a.tiff").write_bytes((tmp_path / "a.tiff").read_bytes()[:200])
    for name in ("a.webp", "a.tiff"):
        with pytest.raises(ValueError, match="is damaged or cut short"):
            read_image(tmp_path / name)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_an_avif_with_damaged_pixels_is_refused(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.avif")
    whole = bytearray((tmp_path / "a.avif").read_bytes())
    at = whole.index(b"mdat") + 4
    whole[at:] = bytes(len(whole) - at)
    (tmp_path / "a.avif").write_bytes(whole)
    with pytest.raises(BadRequest, match="is damaged or cut short"):
        read_image(tmp_path / "a.avif")
