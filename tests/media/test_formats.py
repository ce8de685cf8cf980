"""Limits of output formats: rates, sizes and timing."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kinema.media import formats
from kinema.media.formats import CLOCKS, check, frame_timing, rate_of
from kinema.media.metadata import read_recipe
from kinema.schema import BadRequest, Clip, Shape


def clip(frames: int, fps: float) -> Clip:
    ramp = torch.linspace(-1, 1, frames)[None, None, :, None, None]
    return Clip(ramp.expand(1, 3, frames, 16, 16).contiguous(), fps)


def holds(path: Path) -> list[float]:
    """Display time of each frame in milliseconds, as stored in the file."""
    with Image.open(path) as image:
        times = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            image.load()
            times.append(image.info["duration"])
        return times


RATES = [(1, 8.0), (1, 0.1), (3, 0.1), (7, 1 / 3), (10, 23.976), (10, 24.0), (10, 40.0), (30, 60.0), (48, 240.0)]


@pytest.mark.parametrize(("frames", "fps"), RATES)
@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_animation_lasts_as_long_as_the_clip(tmp_path: Path, suffix: str, frames: int, fps: float) -> None:
    (path,) = clip(frames, fps).save(tmp_path / f"a{suffix}")
    tick = 1000 / CLOCKS[suffix].ticks
    if frames > 1 or suffix == ".gif":  # a webp of one frame is an image
        assert sum(holds(path)) == pytest.approx(1000 * frames / fps, abs=tick / 2 + 1e-6)
        assert min(holds(path)) >= CLOCKS[suffix].least * tick


@pytest.mark.parametrize(("frames", "fps"), RATES)
def test_an_mp4_lasts_as_long_as_the_clip(tmp_path: Path, frames: int, fps: float) -> None:
    (path,) = clip(frames, fps).save(tmp_path / "a.mp4")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(frames / fps, rel=1e-6)
        assert sum(1 for _ in container.decode(stream)) == frames


@given(st.integers(1, 600), st.floats(0.1, 240), st.sampled_from([".gif", ".webp"]))
def test_written_frames_are_in_order_and_long_enough(frames: int, fps: float, suffix: str) -> None:
    clock, rate = CLOCKS[suffix], rate_of(fps)
    written, ticks = frame_timing(clock, frames, rate)
    assert written == sorted(set(written))
    assert 0 <= written[0]
    assert written[-1] < frames
    assert min(ticks) >= clock.least
    assert sum(ticks) == max(clock.least, math.floor(frames * clock.ticks / rate + Fraction(1, 2)))
    if rate <= clock.ticks // clock.least:
        assert len(written) == frames


def test_dropped_gif_frames_are_noted_before_and_in_the_recipe(tmp_path: Path) -> None:
    notes = check(".gif", Shape(1, 3, 60, 16, 16), 60.0)
    assert notes == ["a gif shows at most 50 frames per second: 50 of 60 frames are written; the duration stays 1 s"]
    (path,) = clip(60, 60.0).save(tmp_path / "a.gif")
    assert len(holds(path)) == 50
    assert read_recipe(path)["notes"] == notes
    assert check(".gif", Shape(1, 3, 60, 16, 16), 50.0) == []


@pytest.mark.parametrize("fps", [0.0, -1.0, 0.01, 241.0, math.nan, math.inf])
def test_a_rate_that_no_format_plays_is_refused(tmp_path: Path, fps: float) -> None:
    with pytest.raises(BadRequest, match=r"fps is .*; expected 0\.1 to 240"):
        replace(clip(2, 8.0), fps=fps).save(tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fps", "exact"), [(30000 / 1001, (30000, 1001)), (1 / 3, (1, 3)), (0.1, (1, 10)), (29.97, (2997, 100))]
)
def test_a_rate_becomes_its_nominal_fraction(fps: float, exact: tuple[int, int]) -> None:
    assert rate_of(fps) == Fraction(*exact)


SIZES = [
    (".mp4", 16, 16386, "H.264 encoder does not support"),
    (".mp4", 16384, 16384, "H.264 encoder does not support"),
    (".gif", 16, 65536, "65,535"),
    (".gif", 16384, 16384, "GIF encoder does not support"),
    (".webp", 16384, 16, "16,383"),
]


@pytest.mark.parametrize(("suffix", "height", "width", "part"), SIZES)
def test_a_size_that_a_format_cannot_hold_is_refused(suffix: str, height: int, width: int, part: str) -> None:
    with pytest.raises(BadRequest, match=part):
        check(suffix, Shape(1, 3, 4, height, width), 8.0)


@pytest.mark.parametrize(
    ("suffix", "height", "width"),
    [(".mp4", 1, 1), (".gif", 1, 1), (".webp", 1, 1), (".mp4", 2, 16384), (".webp", 2, 16383)],
)
def test_the_least_and_the_largest_sizes_are_written(tmp_path: Path, suffix: str, height: int, width: int) -> None:
    clip_ = Clip(torch.zeros(1, 3, 2, height, width), 8.0)
    check(suffix, clip_.shape, 8.0)
    assert clip_.save(tmp_path / f"a{suffix}")[0].stat().st_size > 0


def test_a_missing_encoder_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise av.codec.codec.UnknownCodecError("libx264")

    monkeypatch.setattr(formats, "_x264", missing)
    with pytest.raises(BadRequest, match=r"no H\.264 encoder"):
        check(".mp4", Shape(1, 3, 4, 16, 16), 8.0)
