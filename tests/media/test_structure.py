"""Whether a file is complete, by its blocks, chunks and boxes: truncated anywhere, or with trailing data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kinema.media.read import read_image, read_video
from kinema.media.structure import DEFAULT_DELAY, animation
from kinema.schema import BadRequest

Encode = Callable[..., Path]
Moving = Callable[..., np.ndarray]

CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "ffv1", ".webm": "libvpx-vp9", ".avi": "mpeg4"}
NAMES = ["a.mp4", "fast.mp4", "parts.mp4", "a.mov", "a.mkv", "a.webm", "a.avi", "a.gif", "a.webp", "a.png"]
TAILS = {
    "a line of html": b"\n<!-- saved by a web page -->\n",
    "zeros": bytes(4096),
    "noise": np.random.default_rng(0).integers(0, 256, 3000, np.uint8).tobytes(),
    "a free box": b"\0\0\0\x10free" + bytes(8),
    "a uuid box": b"\0\0\0\x20uuid" + bytes(24),
    "a box longer than the file": b"\x7f\xff\xff\xfftail" + bytes(40),
    "a gif comment": b"\x21\xfe\x05hello\0",
    "one byte": b"\0",
}


@pytest.fixture
def sample_file(tmp_path: Path, encode: Encode, moving: Moving) -> Callable[[str], Path]:
    """An 8-frame file written by other programs."""

    def make(name: str) -> Path:
        path, frames = tmp_path / name, moving(8)
        if path.suffix in (".gif", ".webp", ".png"):
            first, *rest = [Image.fromarray(f) for f in frames]
            first.save(path, save_all=True, append_images=rest, duration=120)
            return path
        options = {"fast.mp4": "faststart", "parts.mp4": "frag_every_frame+empty_moov+skip_trailer"}
        return _encoded(path, frames, options.get(name))

    def _encoded(path: Path, frames: np.ndarray, flags: str | None) -> Path:
        import av

        if flags is None:
            return encode(path, frames, codec=CODECS[path.suffix])
        with av.open(str(path), "w", options={"movflags": flags}) as container:
            stream = container.add_stream("libx264", rate=8)
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
            for index, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
                frame.pts = index
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return make


@pytest.mark.parametrize("name", NAMES)
def test_trailing_data_is_ignored(sample_file: Callable[[str], Path], name: str) -> None:
    path = sample_file(name)
    raw, whole = path.read_bytes(), read_video(path).video
    for what, tail in TAILS.items():
        path.write_bytes(raw + tail)
        assert (read_video(path).video == whole).all(), what


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.webp"])
def test_trailing_data_of_an_image_is_ignored(tmp_path: Path, moving: Moving, name: str) -> None:
    path = tmp_path / name
    Image.fromarray(moving(1)[0]).save(path)
    raw, whole = path.read_bytes(), read_image(path)
    for what, tail in TAILS.items():
        path.write_bytes(raw + tail)
        assert (read_image(path) == whole).all(), what


@pytest.mark.parametrize("name", [name for name in NAMES if name != "parts.mp4"])
def test_a_truncated_file_is_refused(sample_file: Callable[[str], Path], name: str) -> None:
    path = sample_file(name)
    raw = path.read_bytes()
    for share in (*np.linspace(0.01, 0.99, 23), 0.999):
        path.write_bytes(raw[: min(int(share * len(raw)), len(raw) - 2)])
        with pytest.raises(BadRequest) as caught:
            read_video(path)
        assert len(str(caught.value)) < 400


def test_a_fragmented_mp4_cut_inside_a_fragment_is_refused(sample_file: Callable[[str], Path]) -> None:
    path = sample_file("parts.mp4")
    raw = path.read_bytes()
    last = raw.rindex(b"moof") - 4
    for end in (last + 40, raw.rindex(b"mdat") + 5, len(raw) - 1):
        path.write_bytes(raw[:end])
        with pytest.raises(BadRequest, match="cut short"):
            read_video(path)
    second = raw.index(b"moof", raw.index(b"moof") + 4) - 4
    path.write_bytes(raw[:second])  # a fragmented file does not declare its number of fragments
    assert 1 <= read_video(path).video.shape[2] < 8


@pytest.mark.parametrize("end", [b"", b"\0\0\0", b"\n<p>and more</p>", b"\0;"])
def test_a_gif_may_lack_its_trailer(sample_file: Callable[[str], Path], end: bytes) -> None:
    path = sample_file("a.gif")
    raw, whole = path.read_bytes(), read_video(path).video
    path.write_bytes(raw[:-1] + end)
    assert (read_video(path).video == whole).all()


def test_a_gif_damaged_in_its_middle_is_refused(sample_file: Callable[[str], Path]) -> None:
    path = sample_file("a.gif")
    raw = path.read_bytes()
    at = raw.rindex(b"\x21\xf9\x04")
    path.write_bytes(raw[:at] + b"<" + raw[at:])
    with pytest.raises(BadRequest, match="no block begins at byte"):
        read_video(path)


def test_an_index_past_the_end_means_a_truncated_file(sample_file: Callable[[str], Path]) -> None:
    path = sample_file("fast.mp4")
    raw = bytearray(path.read_bytes())
    at = raw.index(b"stco") + 12
    raw[at : at + 4] = (int.from_bytes(raw[at : at + 4], "big") + 1).to_bytes(4, "big")
    path.write_bytes(raw)
    with pytest.raises(BadRequest, match="before the end of its last frame"):
        read_video(path)


def test_gif_delays_come_from_its_blocks(tmp_path: Path, moving: Moving) -> None:
    first, *rest = [Image.fromarray(f) for f in moving(4)]
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=[120, 130, 0, 10])
    assert animation(tmp_path / "a.gif", "gif").holds == (0.12, 0.13, DEFAULT_DELAY, 0.01)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_the_structure_agrees_with_pillow(sample_file: Callable[[str], Path], name: str) -> None:
    path = sample_file(name)
    found = animation(path, {"a.png": "apng"}.get(name, name[2:]))
    with Image.open(path) as image:
        assert (found.width, found.height, len(found.holds)) == (*image.size, image.n_frames)
    assert set(found.holds) == {0.12}
