"""The first frame of a clip is read independently of what follows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from kinema.media import read
from kinema.media.first import read_first
from kinema.media.fitting import fit
from kinema.media.read import facts, read_image, read_video
from kinema.schema import BadRequest

SIZE = (16, 24, "crop")
Encode = Callable[..., Path]
Moving = Callable[..., np.ndarray]


def animation(path: Path, frames_THWC: np.ndarray, **options: object) -> Path:
    first, *rest = [Image.fromarray(f) for f in frames_THWC]
    first.save(path, save_all=True, append_images=rest, duration=125, **options)
    return path


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.mp4", "a.mkv", "a.avi"])
def test_it_matches_the_first_frame_of_the_whole_clip(
    tmp_path: Path, encode: Encode, moving: Moving, name: str
) -> None:
    path = tmp_path / name
    if name in ("a.gif", "a.webp", "a.png"):
        animation(path, moving(4))
    else:
        encode(path, moving(4), codec={"a.avi": "mpeg4"}.get(name, "libx264"))
    found, notes = read_first(path, SIZE)
    assert notes == ["48×32 was resized to 24×16"]
    assert torch.equal(found, read_video(path, frames=1, size=SIZE).video)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.mkv"])
def test_it_is_read_from_a_clip_that_is_too_large_or_too_long(
    tmp_path: Path, encode: Encode, moving: Moving, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    encode(path, moving(6), codec="ffv1") if name == "a.mkv" else animation(path, moving(6))
    monkeypatch.setattr("kinema.media.timing.DECODED", {"video": (2000, 0), "images": (2000, 0)})
    monkeypatch.setattr(read, "MAX_SECONDS", 0.2)
    with pytest.raises(BadRequest):
        read_video(path)
    assert read_first(path, SIZE)[0].shape == (1, 3, 1, 16, 24)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.mkv", "a.avi", "a.mp4"])
def test_it_is_read_from_a_truncated_clip_with_a_note(
    tmp_path: Path, encode: Encode, moving: Moving, name: str
) -> None:
    path = tmp_path / name
    if name in ("a.gif", "a.png"):
        animation(path, moving(6))
    else:
        codec = {"a.avi": "mpeg4", "a.mkv": "ffv1"}.get(name, "libx264")
        encode(path, moving(24), codec=codec, prepare=lambda s: setattr(s, "options", {"bf": "0", "g": "1"}))
    if name == "a.mp4":  # with the index ahead, as for the web
        import av

        with (
            av.open(str(path)) as source,
            av.open(str(tmp_path / "b.mp4"), "w", options={"movflags": "faststart"}) as to,
        ):
            stream = to.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    to.mux(packet)
        path = tmp_path / "b.mp4"
    whole, _ = read_first(path, SIZE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 4 // 5])
    with pytest.raises(BadRequest, match="is cut short"):
        read_video(path)
    found, notes = read_first(path, SIZE)
    assert torch.equal(found, whole)
    assert notes[0].startswith("is cut short: it ends at byte")
    assert notes[0].endswith("; its first frame is used")


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_a_clip_truncated_inside_it_is_refused(tmp_path: Path, moving: Moving, name: str) -> None:
    path = animation(tmp_path / name, moving(6))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(BadRequest, match="cut short"):
        read_first(path, SIZE)


def test_a_default_image_before_the_animation_is_skipped(tmp_path: Path, moving: Moving) -> None:
    path = animation(tmp_path / "a.png", moving(4), default_image=True)
    assert torch.equal(read_first(path, SIZE)[0], read_video(path, frames=1, size=SIZE).video)


def test_an_image_is_its_own_first_frame(tmp_path: Path, moving: Moving) -> None:
    Image.fromarray(moving(1)[0]).save(tmp_path / "a.png")
    assert torch.equal(read_first(tmp_path / "a.png", SIZE)[0], fit(read_image(tmp_path / "a.png"), *SIZE)[0])


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_an_animated_avif_is_an_image_but_not_a_clip(tmp_path: Path, moving: Moving) -> None:
    path = animation(tmp_path / "a.avif", moving(4))
    assert read_first(path, SIZE)[0].shape == (1, 3, 1, 16, 24)
    with pytest.raises(BadRequest, match="is an animated AVIF, which is not supported"):
        read_video(path)
    found = facts(path)
    assert (found["codec"], found["frames"], found["width"], found["height"]) == ("avif", 4, 48, 32)
    assert "animated AVIF" in found["refused"]
