"""Sizes of clips that are known before their frames are decoded."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from kinema.data.frames import frame_sizes, read_frames
from kinema.media.write import save_clip
from kinema.schema import Clip


@pytest.fixture
def films(tmp_path):
    """Clips of seven frames of 16×24, in several formats, and an image."""
    video = torch.linspace(-1, 1, 7)[None, None, :, None, None].expand(1, 3, 7, 16, 24)
    for name in ("a.mp4", "a.gif", "a.webp"):
        save_clip(Clip(video, 10.0), tmp_path / name, generated=False)
    (tmp_path / "frames").mkdir()
    for i in range(7):
        Image.new("RGB", (24, 16), (30 * i, 0, 0)).save(tmp_path / "frames" / f"{i}.png")
    Image.new("RGB", (24, 16), (200, 100, 0)).save(tmp_path / "still.png")
    return tmp_path


@pytest.mark.parametrize("fps", [None, 5.0, 12.0])
@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "frames", "still.png"])
def test_sizes_are_those_of_the_frames_that_are_read(films, name, fps):
    frames = list(read_frames(films / name, fps))
    assert frame_sizes(films / name, fps) == (len(frames), *frames[0].shape[:2])


def test_an_image_is_one_frame_of_unknown_rate(films):
    rates = []
    (frame,) = read_frames(films / "still.png", 8.0, rates)
    assert frame[0, 0].tolist() == [200, 100, 0]
    assert rates[0] != rates[0]  # NaN
