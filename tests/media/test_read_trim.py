"""A part of a clip equals the same frames of the whole clip, and no more of the file is decoded than needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kinema.media import read, streams, timing
from kinema.media.colour import to_float
from kinema.media.read import probe, read_video
from kinema.media.write import save_clip
from kinema.schema import BadRequest, Clip

Moving = Callable[..., np.ndarray]
Encode = Callable[..., Path]

FRAMES = 20
UNEVEN = tuple(np.cumsum([0, *([0.1, 0.1, 0.35, 0.1] * 5)])[:FRAMES].tolist())
JITTER = tuple(t / 8 + (0.03 if t % 3 == 1 else 0) for t in range(FRAMES))
HOLDS = [*[100, 100, 350, 100] * 4, 100, 100, 350, 180]
LATE = tuple(5 + t / 8 for t in range(FRAMES))


def options(**options_: str) -> Callable[[Any], None]:
    return lambda stream: stream.options.update({name.replace("_", "-"): value for name, value in options_.items()})


def key_frames(every: int) -> Callable[[Any], None]:
    return options(g=str(every), bf="2")


SIX = options(g="6")
VIDEOS: dict[str, tuple[str, dict[str, Any]]] = {
    "mp4": ("a.mp4", {"prepare": key_frames(6)}),
    "open groups": ("a.mp4", {"prepare": options(x264_params="open-gop=1:keyint=6:bframes=3")}),
    "ntsc": ("a.mkv", {"rate": Fraction(24000, 1001), "prepare": key_frames(6)}),
    "uneven mkv": ("a.mkv", {"codec": "ffv1", "times": UNEVEN}),
    "uneven mp4": ("a.mp4", {"times": UNEVEN, "prepare": key_frames(6)}),
    "jitter": ("a.mkv", {"codec": "ffv1", "times": JITTER}),
    "late mkv": ("a.mkv", {"codec": "ffv1", "times": LATE}),
    "late mp4": ("a.mp4", {"times": LATE, "prepare": key_frames(6)}),
    "webm": ("a.webm", {"codec": "libvpx-vp9", "prepare": SIX}),
    "avi": ("a.avi", {"codec": "mpeg4", "prepare": SIX}),
    "avi with b-frames": ("a.avi", {"prepare": key_frames(6)}),
}
ANIMATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gif": ("a.gif", {"duration": HOLDS}),
    "uneven webp": ("a.webp", {"duration": HOLDS, "lossless": True}),
    "even webp": ("a.webp", {"duration": 125, "lossless": True}),
    "apng": ("a.png", {"duration": 125}),
}


def _file(tmp_path: Path, encode: Encode, frames: np.ndarray, kind: str) -> Path:
    if kind == "folder":
        return save_clip(Clip(to_float(frames), 12.0), tmp_path / "a.png")[0]
    if kind in ANIMATIONS:
        name, options_ = ANIMATIONS[kind]
        return _animation(tmp_path / name, frames, **options_)
    name, options_ = VIDEOS[kind]
    return encode(tmp_path / name, frames, **options_)


def _animation(path: Path, frames: np.ndarray, **options_: object) -> Path:
    first, *rest = [Image.fromarray(f) for f in frames]
    first.save(path, save_all=True, append_images=rest, **options_)
    return path


@pytest.mark.parametrize("kind", [*VIDEOS, *ANIMATIONS, "folder"])
def test_a_part_equals_that_of_the_whole(tmp_path: Path, encode: Encode, moving: Moving, kind: str) -> None:
    path = _file(tmp_path, encode, moving(FRAMES), kind)
    natural = read_video(path)
    own, total = natural.fps, natural.shape.frames
    for fps, times in ((None, 1), (own, 1), (2 * own, 2)):
        whole = read_video(path, fps=fps)
        for first, stop in ((0, 3), (5, 9), (7, total), (total - 1, total)):
            part = read_video(path, start=f"{first}f", end=f"{stop}f", fps=fps)
            assert part.fps == whole.fps
            expected = whole.video[:, :, times * first :][:, :, : part.shape.frames]
            assert torch.equal(part.video, expected)
            if stop < total:
                assert part.shape.frames == times * (stop - first)
            else:  # the last frame lasts for its own duration
                assert part.shape.frames == whole.shape.frames - times * first
            found = probe(path, fps, f"{first}f", f"{stop}f")
            assert (found.frames, found.fps) == (part.shape.frames, part.fps)
            assert (found.begin, found.end) == pytest.approx((first / own, stop / own))
    assert torch.equal(read_video(path, start=5 / own, end=9 / own).video, natural.video[:, :, 5:9])


def test_another_rate_counts_from_the_start(tmp_path: Path, encode: Encode, moving: Moving) -> None:
    path = encode(tmp_path / "a.mp4", moving(FRAMES))
    whole = read_video(path).video
    assert torch.equal(read_video(path, start="3f", end="11f", fps=4.0).video, whole[:, :, [3, 5, 7, 9]])
    assert torch.equal(read_video(path, start="3f", end="11f", last=2).video, whole[:, :, 9:11])
    assert torch.equal(read_video(path, start="3f", frames=2).video, whole[:, :, 3:5])


def test_a_folder_without_a_rate_uses_the_requested_one(tmp_path: Path, moving: Moving) -> None:
    for index, frame in enumerate(moving(FRAMES)):
        Image.fromarray(frame).save(tmp_path / f"f{index:03}.png")
    whole = read_video(tmp_path).video
    assert torch.equal(read_video(tmp_path, start=0.5, end=1).video, whole[:, :, 4:8])
    assert torch.equal(read_video(tmp_path, start=0.5, end=1, fps=4.0).video, whole[:, :, 2:4])


def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path: Path, encode: Encode, moving: Moving) -> None:
    whole = encode(tmp_path / "a.mp4", moving(FRAMES), prepare=key_frames(6))
    cut = tmp_path / "b.mp4"
    _from(whole, cut, 8)
    visible = read_video(cut)
    assert visible.shape.frames == FRAMES - 8
    for first, stop in ((0, 2), (3, 5), (5, 11), (11, 12)):
        part = read_video(cut, start=f"{first}f", end=f"{stop}f")
        assert torch.equal(part.video, visible.video[:, :, first:stop])


def _from(source: Path, target: Path, first: int) -> None:
    """Copy the packets from the key frame before ``first`` on, with an edit list that hides those before it."""
    import av

    with av.open(str(source)) as one, av.open(str(target), "w") as other:
        stream = one.streams.video[0]
        copied = other.add_stream_from_template(stream)
        key = first // 6 * 6
        tick = int(1 / (8 * stream.time_base))
        for packet in one.demux(stream):
            if packet.size and packet.pts >= key * tick:
                packet.pts, packet.dts, packet.stream = packet.pts - first * tick, packet.dts - first * tick, copied
                other.mux(packet)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Times of the decoded frames."""
    times: list[float] = []
    timed = streams._timed

    def counting(*given: Any) -> Iterator[Any]:
        for frame in timed(*given):
            times.append(frame.time)
            yield frame

    monkeypatch.setattr(streams, "_timed", counting)
    return times


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("fps", [None, 8.0])
def test_only_the_part_is_decoded(
    tmp_path: Path, encode: Encode, moving: Moving, decoded: list[float], name: str, fps: float | None
) -> None:
    path = encode(tmp_path / name, moving(60), prepare=key_frames(10))
    assert probe(path, fps, "32f", "36f").frames == 4
    assert decoded[0] == 0
    assert decoded[1] == pytest.approx(30 / 8, abs=0.01)
    assert max(decoded) <= 37 / 8
    decoded.clear()
    assert read_video(path, fps=fps, start="32f", end="36f").shape.frames == 4
    assert min(decoded) == pytest.approx(30 / 8, abs=0.01)
    assert max(decoded) <= 37 / 8


def test_a_gif_is_decoded_only_up_to_the_end(tmp_path: Path, moving: Moving, decoded: list[float]) -> None:
    path = _animation(tmp_path / "a.gif", moving(FRAMES), duration=100)
    read_video(path, start="4f", end="6f")
    assert max(decoded) <= 0.6


def test_a_demuxer_that_seeks_too_far_is_restarted(
    tmp_path: Path, encode: Encode, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "a.mp4", moving(FRAMES), prepare=key_frames(6))
    whole, seek, gone = read_video(path).video, streams._seek, []

    def too_far(container: Any, stream: Any, target: int) -> None:
        gone.append(target)
        seek(container, stream, int(2.25 / stream.time_base))

    monkeypatch.setattr(streams, "_seek", too_far)
    assert torch.equal(read_video(path, start="13f", end="15f").video, whole[:, :, 13:15])
    assert gone
    assert probe(path, None, "13f", "15f").part.seek is not None  # the located key frame is still used


def test_a_file_whose_packets_differ_from_its_frames_is_decoded(
    tmp_path: Path, encode: Encode, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "a.mp4", moving(FRAMES), prepare=key_frames(6))
    whole, honest = read_video(path).video, read.survey

    def halved(*given: Any) -> Any:
        found = honest(*given)
        del found.timed[1::2]
        return found

    monkeypatch.setattr(read, "survey", halved)
    assert torch.equal(read_video(path, start="7f", end="9f").video, whole[:, :, 7:9])


def test_a_short_part_of_a_too_long_film_can_be_read(
    tmp_path: Path, encode: Encode, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "a.mp4", moving(FRAMES), prepare=key_frames(6))
    monkeypatch.setattr(read, "MAX_SECONDS", 1.0)
    monkeypatch.setattr(timing, "MAX_STILL", 1.0)
    with pytest.raises(BadRequest, match="longer than 1 seconds; select a part with --start and --end"):
        read_video(path)
    assert read_video(path, start="14f").shape.frames == 6
    assert read_video(path, start="14f", end="16f").shape.frames == 2


def test_a_part_that_is_too_long_is_refused(
    tmp_path: Path, encode: Encode, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "a.mp4", moving(FRAMES))
    monkeypatch.setattr(read, "MAX_SECONDS", 0.5)
    with pytest.raises(BadRequest, match=r"longer than 0\.5 seconds"):
        read_video(path, start="4f", end="12f")
    assert read_video(path, start="4f", end="8f").shape.frames == 4
