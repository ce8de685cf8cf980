"""What a read keeps, and what a probe predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from kinema import bounds
from kinema.media import read, timing
from kinema.media.colour import to_uint8
from kinema.media.fitting import fit_frame
from kinema.media.read import Probe, fit, fit_note, probe, read_video
from kinema.media.streams import stream_frames
from kinema.media.timing import TimedFrame
from kinema.media.write import save_clip
from kinema.schema import BadRequest, Clip, Fit

Moving = Callable[..., np.ndarray]
Encode = Callable[..., Path]

UNEVEN = (0.0, 0.125, 0.25, 0.75, 0.875, 1.0)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Number of frames decoded, and number whose pixels were converted."""
    counted = {"frames": 0, "pixels": 0}

    def counting(*arguments: object) -> Iterator[TimedFrame]:
        for frame in stream_frames(*arguments):  # type: ignore[arg-type]
            counted["frames"] += 1

            def pixels(original: Callable[[], np.ndarray] = frame.pixels) -> np.ndarray:
                counted["pixels"] += 1
                return original()

            yield TimedFrame(frame.time, frame.duration, pixels, frame.clock, frame.declared)

    monkeypatch.setattr(read, "stream_frames", counting)
    return counted


@pytest.mark.parametrize("fps", [None, 3.0, 8.0, 20.0])
@pytest.mark.parametrize("times", [None, UNEVEN])
def test_a_probe_predicts_a_read(
    tmp_path: Path, encode: Encode, moving: Moving, fps: float | None, times: tuple[float, ...] | None
) -> None:
    path = encode(tmp_path / "a.mkv", moving(6), codec="ffv1", times=times)
    clip = read_video(path, fps=fps)
    assert probe(path, fps) == Probe(clip.shape.frames, clip.fps, 32, 48)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_a_probe_supports_gifs_webps_and_folders(tmp_path: Path, clip: Clip, name: str) -> None:
    path = save_clip(clip, tmp_path / name)[0]
    whole = read_video(path)
    assert probe(path) == Probe(6, whole.fps, 32, 48)
    assert probe(path, 4.0) == Probe(read_video(path, fps=4.0).shape.frames, 4.0, 32, 48)


def test_a_probe_converts_the_pixels_of_one_frame(
    tmp_path: Path, encode: Encode, moving: Moving, decoded: dict[str, int]
) -> None:
    assert probe(encode(tmp_path / "a.mp4", moving(6)), 16.0).frames == 12
    assert decoded == {"frames": 6, "pixels": 1}


def test_a_probe_counts_more_frames_than_one_read_may_keep(
    tmp_path: Path, encode: Encode, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "MAX_FRAMES", 4)
    assert probe(encode(tmp_path / "a.mp4", moving(6))).frames == 6


@pytest.mark.parametrize("how", ["crop", "pad"])
def test_fitting_while_reading_equals_fitting_afterwards(
    tmp_path: Path, encode: Encode, moving: Moving, how: Fit
) -> None:
    path = encode(tmp_path / "a.mp4", moving(3))
    while_reading = read_video(path, size=(16, 16, how)).video
    afterwards = fit(read_video(path).video, 16, 16, how)[0]
    assert while_reading.shape == afterwards.shape
    assert float((while_reading - afterwards).abs().max()) <= 0.5 / 127.5 + 1e-5


def test_the_limit_on_pixels_counts_the_small_version(tmp_path: Path, encode: Encode, moving: Moving) -> None:
    path = encode(tmp_path / "a.mp4", moving(6))
    assert read_video(path, size=(16, 16, "crop"), max_pixels=6 * 16 * 16).shape.frames == 6
    with pytest.raises(BadRequest, match="more than 1,535 pixels"):
        read_video(path, size=(16, 16, "crop"), max_pixels=6 * 16 * 16 - 1)


def test_decoding_has_its_own_limit(
    tmp_path: Path, encode: Encode, moving: Moving, monkeypatch: pytest.MonkeyPatch, decoded: dict[str, int]
) -> None:
    path = encode(tmp_path / "a.mp4", moving(6))
    monkeypatch.setattr(timing, "DECODED", {"video": (5 * 32 * 48, 0)})
    with pytest.raises(BadRequest, match=r"6 frames of 48×32, more than the 7,680 pixels .* --max-pixels raises that"):
        read_video(path, size=(8, 8, "crop"), last=1)
    assert decoded["frames"] == 0
    with pytest.raises(BadRequest, match="decodes to more than the 7,680 pixels"):
        read_video(path, size=(8, 8, "crop"), frames=6)
    with bounds.raised_limits(6 * 32 * 48):
        assert read_video(path, size=(8, 8, "crop"), last=1).shape.frames == 1


@pytest.mark.parametrize("fps", [None, 3.0, 20.0])
@pytest.mark.parametrize("times", [None, UNEVEN])
@pytest.mark.parametrize("last", [1, 4, 99])
def test_the_last_frames_are_the_end_of_the_clip(
    tmp_path: Path, encode: Encode, moving: Moving, fps: float | None, times: tuple[float, ...] | None, last: int
) -> None:
    path = encode(tmp_path / "a.mkv", moving(6), codec="ffv1", times=times)
    whole, end = read_video(path, fps=fps), read_video(path, fps=fps, last=last)
    assert end.fps == whole.fps
    assert torch.equal(end.video, whole.video[:, :, -last:])


def test_last_may_skip_more_frames_than_the_limit(tmp_path: Path, encode: Encode, moving: Moving) -> None:
    path = encode(tmp_path / "a.mp4", moving(6))
    assert read_video(path, last=2, max_frames=2, max_pixels=2 * 32 * 48).shape.frames == 2


@pytest.mark.parametrize(("fps", "most"), [(None, 3), (8.0, 4), (4.0, 6)])
def test_nothing_is_decoded_after_the_requested_frames(
    tmp_path: Path, encode: Encode, moving: Moving, decoded: dict[str, int], fps: float | None, most: int
) -> None:
    path = encode(tmp_path / "a.mp4", moving(20))
    assert read_video(path, frames=3, fps=fps).shape.frames == 3
    assert decoded["frames"] <= most
    assert decoded["pixels"] == 3


def test_a_repeated_frame_is_converted_once(
    tmp_path: Path, encode: Encode, moving: Moving, decoded: dict[str, int]
) -> None:
    assert read_video(encode(tmp_path / "a.mp4", moving(6)), fps=16.0).shape.frames == 12
    assert decoded["pixels"] == 6


@pytest.mark.parametrize("how", ["crop", "pad"])
@pytest.mark.parametrize("old", [(32, 48), (48, 32), (16, 16), (8, 8), (5, 40)])
def test_the_note_is_that_of_fit(old: tuple[int, int], how: Fit) -> None:
    assert fit_note(16, 16, *old, how) == fit(torch.zeros(1, 3, 1, *old), 16, 16, how)[1]


def test_a_note_describes_cropping_and_padding() -> None:
    assert fit_note(16, 16, 32, 48) == "48×32 was cropped to 32×32 and resized to 16×16"
    assert fit_note(16, 16, 32, 64, "pad") == "64×32 was resized to 16×8 and padded with black to 16×16"
    assert fit_note(16, 16, 16, 16) is None


def test_a_padded_frame_has_black_bars() -> None:
    fitted = fit_frame(np.full((8, 16, 3), 200, np.uint8), 16, 16, "pad")
    assert fitted[:, 0, 0].tolist() == [0] * 4 + [200] * 8 + [0] * 4


@pytest.mark.parametrize(("size", "last"), [((0, 16, "crop"), None), ((16, 16, "stretch"), None), (None, 0)])
def test_impossible_sizes_and_counts_are_refused(
    tmp_path: Path, encode: Encode, moving: Moving, size: tuple[int, int, Fit] | None, last: int | None
) -> None:
    path = encode(tmp_path / "a.mp4", moving(2))
    with pytest.raises(BadRequest, match="expected"):
        read_video(path, size=size, last=last)
    assert to_uint8(read_video(path).video).shape == (1, 2, 32, 48, 3)
