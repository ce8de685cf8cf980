"""Uploads are decoded in a process with limits: bombs and damaged files are one sentence, and harm nothing."""

from __future__ import annotations

import asyncio
import io
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from PIL import ExifTags, Image

from kinema.schema import BadRequest, Clip
from kinema.server import inspector
from kinema.server.inspections import Inspections
from kinema.server.inspector import inspected
from kinema.server.jobs import ServiceError
from kinema.server.settings import Limits

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def clip(tmp_path):
    video = torch.rand(1, 3, 5, 16, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Clip(video, 8.0, {"recipe": 2, "stages": []}).save(tmp_path / "clip.mp4")[0]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(side: int) -> bytes:
    """A png of a few kilobytes that declares side × side pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(2**20), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def zip_bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", bytes(2**24))
    return file.getvalue()


def test_a_clip_is_reported_with_its_recipe(clip):
    found = inspected(clip)
    assert '"recipe"' in found.pop("recipe")
    assert found == {"kind": "video", "frames": 5, "fps": 8.0, "height": 16, "width": 32}


def test_an_image_is_reported(tmp_path):
    Image.new("RGB", (7, 5)).save(tmp_path / "a.png")
    assert inspected(tmp_path / "a.png") == {
        "kind": "image", "frames": 1, "fps": None, "height": 5, "width": 7, "recipe": None,
    }  # fmt: skip


def test_an_image_has_its_upright_size(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (7, 5)).save(tmp_path / "a.jpg", exif=exif)
    assert (inspected(tmp_path / "a.jpg")["height"], inspected(tmp_path / "a.jpg")["width"]) == (7, 5)


def test_decoding_loads_no_torch(tmp_path, clip):
    """Each upload has a process of its own; torch would add a second and 200 MB."""
    Image.new("RGB", (7, 5)).save(tmp_path / "a.png")
    Image.new("I;16", (7, 5)).save(tmp_path / "deep.png")
    code = (
        "import sys; from pathlib import Path; from kinema.server.inspector import inspected\n"
        "for each in sys.argv[1:]: inspected(Path(each))\n"
        "print('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, clip, tmp_path / "a.png", tmp_path / "deep.png"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"


def test_more_pixels_than_a_clip_may_have_are_refused_while_decoding(clip, monkeypatch):
    monkeypatch.setattr(inspector, "MAX_VIDEO_PIXELS", 16 * 32 * 3)
    with pytest.raises(BadRequest, match="pixels over all frames"):
        inspected(clip)


HOSTILE = {
    "png of 60,000 × 60,000 pixels": lambda: png_bomb(60_000),
    "zip": zip_bomb,
    "text": lambda: b"#!/bin/sh\nrm -rf /\n",
    "playlist": lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "concat list": lambda: b"ffconcat version 1.0\nfile /etc/passwd\n",
    "nothing": lambda: b"",
    "half an mp4": lambda: b"\0\0\0\x18ftypmp42" + bytes(64),
    "half a png": lambda: png_bomb(100)[:60],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_uploads_are_refused_in_a_sentence(tmp_path, name):
    path = tmp_path / "upload"
    path.write_bytes(HOSTILE[name]())
    with pytest.raises(BadRequest) as refused:
        inspected(path)
    assert len(str(refused.value).splitlines()) == 1


# -------------------------------------------------------------------------------- with its process


def inspect(limits: Limits, folder: Path, *paths: Path) -> list[dict | str]:
    """What each of these files is, or the sentence with which it is refused."""

    async def each() -> list[dict | str]:
        inspections, found = Inspections(limits, folder), list[dict | str]()
        inspections.warm()
        for path in paths:
            try:
                found.append(await inspections.inspect(path))
            except ServiceError as error:
                found.append(f"{error.status} {error.code}: {error.message}")
        await inspections.stop()
        return found

    return asyncio.run(each())


def test_a_process_decodes_a_file_and_refuses_another_without_its_path(tmp_path, clip):
    (tmp_path / "bomb").write_bytes(png_bomb(60_000))
    found, refused = inspect(Limits(), tmp_path, clip, tmp_path / "bomb")
    assert (found["kind"], found["frames"]) == ("video", 5)
    assert refused.startswith("400 invalid_upload: the file")
    assert str(tmp_path) not in refused


def test_a_file_that_takes_too_long_ends_its_process(tmp_path, clip):
    (refused,) = inspect(Limits(decode_seconds=0.001), tmp_path, clip)
    assert refused == "400 invalid_upload: the file takes more than 0.001 seconds to decode"


def test_a_limited_process_writes_nothing_and_gets_no_more_memory(tmp_path):
    code = """
import resource, sys
from kinema.server.inspector import limit
limit({"bytes": 64 * 2**20, "seconds": 5})
try:
    bytearray(2**30)
    sys.exit("memory")
except MemoryError:
    pass
try:
    with open(sys.argv[1], "wb") as file:
        file.write(b"x")
        file.flush()
    sys.exit("wrote")
except OSError:
    pass
"""
    ignore = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    words = [sys.executable, "-c", ignore + code, str(tmp_path / "file")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
