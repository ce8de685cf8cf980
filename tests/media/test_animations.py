"""Animated gifs, webps and pngs: rates, first frames, and limits on decoding."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kinema import bounds
from kinema.media import images, timing
from kinema.media.colour import to_uint8
from kinema.media.images import is_image
from kinema.media.read import facts, probe, read_image, read_video
from kinema.schema import BadRequest

Moving = Callable[..., np.ndarray]


def gif(path: Path, delays: Sequence[int], width: int = 2, height: int = 2) -> Path:
    """A gif of one-pixel frames with these delays in hundredths of a second and any declared canvas."""
    data = b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + bytes([0, 0, 0, 255, 255, 255])
    for delay in delays:
        data += b"\x21\xf9\x04\x01" + struct.pack("<H", delay) + b"\0\0"
        data += b"\x2c" + struct.pack("<HHHH", 0, 0, 1, 1) + b"\0\x02\x02\x44\x01\0"
    path.write_bytes(data + b";")
    return path


def webp(path: Path, count: int, width: int, height: int) -> Path:
    """A webp of one-pixel frames on a canvas of any size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)

    def three(value: int) -> bytes:
        return struct.pack("<I", value)[:3]

    buffer = io.BytesIO()
    Image.new("RGBA", (1, 1), (255, 0, 0, 255)).save(buffer, "WEBP", lossless=True)
    frame = three(0) * 4 + three(100) + b"\0" + buffer.getvalue()[12:]
    body = chunk(b"VP8X", b"\x12\0\0\0" + three(width - 1) + three(height - 1)) + chunk(b"ANIM", bytes(6))
    body += chunk(b"ANMF", frame) * count
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body)
    return path


def apng(path: Path, frames: np.ndarray, **options: object) -> Path:
    first, *rest = [Image.fromarray(f) for f in frames]
    first.save(path, "PNG", save_all=True, append_images=rest, **options)
    return path


# ------------------------------------------------------------------------------------------- rates


@pytest.mark.parametrize(
    ("delays", "fps"),
    [
        ([12] * 8, 100 / 12),
        ([12] * 2, 100 / 12),
        ([3] * 30, 100 / 3),
        ([7] * 11, 100 / 7),
        ([12, 13] * 4, 8),
        ([12, 13, 12, 13, 12], 8),
        ([4, 4, 5, 4, 4, 4], 24),
        ([4, 5, 4] * 16, 300 / 13),
        ([10, 14] * 4, 100 / 12),
        ([0] * 5, 10),
        ([1] * 5, 100),
        ([2] * 5, 50),
    ],
)
def test_the_rate_of_a_gif_is_exact(tmp_path: Path, delays: list[int], fps: float) -> None:
    path = gif(tmp_path / "a.gif", delays)
    assert read_video(path).fps == pytest.approx(fps, rel=1e-9)
    assert facts(path)["fps"] == probe(path).fps == pytest.approx(fps, rel=1e-9)


@pytest.mark.parametrize("name", ["a.webp", "a.png"])
@pytest.mark.parametrize(("delay", "fps"), [(33, 1000 / 33), (120, 1000 / 120), (125, 8)])
def test_the_rate_of_a_webp_or_apng_is_exact(tmp_path: Path, moving: Moving, name: str, delay: int, fps: float) -> None:
    first, *rest = [Image.fromarray(f) for f in moving(4)]
    first.save(tmp_path / name, save_all=True, append_images=rest, duration=delay)
    assert read_video(tmp_path / name).fps == pytest.approx(fps, rel=1e-9)


# -------------------------------------------------------------------------------------------- apng


def test_an_apng_is_a_clip_with_its_own_delays(tmp_path: Path, moving: Moving) -> None:
    path = apng(tmp_path / "a.png", moving(6), duration=125)
    assert not is_image(path)
    clip = read_video(path)
    assert clip.fps == 8
    assert np.array_equal(to_uint8(clip.video)[0], moving(6))
    assert facts(path) == {"codec": "apng", "frames": 6, "fps": 8.0, "width": 48, "height": 32}


def test_an_apng_as_image_is_its_first_frame(tmp_path: Path, moving: Moving) -> None:
    path = apng(tmp_path / "a.png", moving(6), duration=125)
    assert np.array_equal(to_uint8(read_image(path))[0, 0], moving(6)[0])
    assert np.array_equal(to_uint8(read_video(path, frames=1).video)[0, 0], moving(6)[0])


def test_a_default_image_outside_the_animation_is_skipped(tmp_path: Path, moving: Moving) -> None:
    frames = moving(4)
    path = apng(tmp_path / "a.png", frames, duration=100, default_image=True)
    clip = read_video(path)
    assert np.array_equal(to_uint8(clip.video)[0], frames[1:])
    assert clip.fps == 10
    assert np.array_equal(to_uint8(read_image(path))[0, 0], frames[0])


def test_parts_of_an_apng_match_the_whole(tmp_path: Path, moving: Moving) -> None:
    path = apng(tmp_path / "a.png", moving(6), duration=125)
    assert np.array_equal(to_uint8(read_video(path, start=0.25, frames=2).video)[0], moving(6)[2:4])
    assert np.array_equal(to_uint8(read_video(path, last=1).video)[0], moving(6)[5:])
    assert np.array_equal(to_uint8(read_video(path, fps=4).video)[0], moving(6)[::2])


def test_a_single_frame_or_pages_count_as_an_image(tmp_path: Path, moving: Moving) -> None:
    first, second = (Image.fromarray(f) for f in moving(2))
    for name in ("a.gif", "a.webp", "a.png"):
        first.save(tmp_path / name, save_all=True)
        assert is_image(tmp_path / name)
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    assert is_image(tmp_path / "a.tif")
    assert is_image(tmp_path / "a.jpg")


# ------------------------------------------------------------------------------------------ bounds


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Images that Pillow opened."""
    seen: list[str] = []
    identified = images._identified

    def noted(source: object) -> object:
        seen.append(str(source))
        return identified(source)  # type: ignore[arg-type]

    monkeypatch.setattr(images, "_identified", noted)
    return seen


@pytest.mark.parametrize("reader", [read_video, probe])
@pytest.mark.parametrize("make", [lambda p: gif(p, [4] * 400, 3000, 3000), lambda p: webp(p, 400, 3000, 3000)])
def test_many_frames_of_a_large_canvas_are_refused_before_decoding(
    tmp_path: Path, decoders: list[str], make: Callable[[Path], Path], reader: Callable[[Path], object]
) -> None:
    path = make(tmp_path / "bomb")
    assert path.stat().st_size < 40_000
    with pytest.raises(BadRequest, match=r"bomb has 400 frames of 3000×3000, .*--max-pixels raises that"):
        reader(path)
    assert not decoders


@pytest.mark.parametrize("reader", [read_video, probe, facts])
@pytest.mark.parametrize("make", [lambda p: gif(p, [4] * 2, 65535, 65535), lambda p: webp(p, 2, 16384, 16384)])
def test_a_huge_canvas_is_refused_before_decoding(
    tmp_path: Path, decoders: list[str], make: Callable[[Path], Path], reader: Callable[[Path], object]
) -> None:
    with pytest.raises(BadRequest, match=r"bomb is \d+×\d+; frames are limited to 33,554,432 pixels"):
        reader(make(tmp_path / "bomb"))
    assert not decoders


def test_an_ordinary_gif_is_within_the_bound() -> None:
    timing.Budget.of("a.gif", 10_000, "images").check(500, 480, 854)
    for frames, height, width in ((300, 1080, 1920), (150, 2160, 3840)):
        timing.Budget.of("a.mp4", 10_000, "video").check(frames, height, width)


def test_the_bound_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "DECODED", {"images": (100, 0)})
    path = gif(tmp_path / "a.gif", [4] * 10, 8, 8)
    with pytest.raises(BadRequest, match="more than the 100 pixels"):
        read_video(path)
    with bounds.raised_limits(10 * 8 * 8):
        assert read_video(path).video.shape[2] == 10
    with pytest.raises(BadRequest, match="more than the 100 pixels"):
        read_video(path)


def test_a_folder_is_counted_as_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moving: Moving) -> None:
    for index, frame in enumerate(moving(4)):
        Image.fromarray(frame).save(tmp_path / f"{index}.png")
    monkeypatch.setattr(timing, "DECODED", {"images": (3 * 32 * 48, 0)})
    with pytest.raises(BadRequest, match="decodes to more than the 4,608 pixels"):
        read_video(tmp_path)
    assert read_video(tmp_path, frames=3).video.shape[2] == 3


@pytest.mark.parametrize("most", [40_000, 2**20])
def test_a_missing_frame_is_detected(tmp_path: Path, moving: Moving, most: int) -> None:
    raw = apng(tmp_path / "a.png", moving(4), duration=100).read_bytes()
    at = raw.index(b"acTL") + 4
    (tmp_path / "b.png").write_bytes(raw[:at] + most.to_bytes(4, "big") + raw[at + 4 :])
    with pytest.raises(BadRequest, match="before the last of its"):
        read_video(tmp_path / "b.png")


def test_16_bit_grey_reads_the_same_as_clip_and_image(tmp_path: Path) -> None:
    frames = np.stack([np.full((8, 8), value, np.uint16) for value in (0x8000, 0xC000)])
    path = apng(tmp_path / "a.png", frames)
    levels = to_uint8(read_video(path).video)[0, :, 0, 0, 0]
    assert levels.tolist() == [128, 191]
    assert to_uint8(read_image(path)).max() == 128
