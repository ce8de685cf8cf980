"""Masks carried for an editor: the small masks of a document, in one image."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from kinema.schema import BadRequest, Request
from kinema.server.carrier import SIDE, carried


@pytest.fixture
def clip(tmp_path):
    """A gif of 20 frames of 32×600 in which a square moves right by 16 pixels a frame."""
    frames = []
    for at in range(20):
        frame = Image.new("L", (600, 32), 40)
        frame.paste(220, (16 * at, 8, 16 * at + 16, 24))
        frames.append(frame)
    path = tmp_path / "clip.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    return path


def mask(path, left):
    image = Image.new("L", (600, 32))
    image.paste(255, (left, 8, left + 16, 24))
    image.save(path)
    return str(path)


def sheet_of(found):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found["image"]))).convert("L")) > 127


def test_masks_of_all_frames_lie_in_rows_at_a_reduced_size(clip, tmp_path):
    pytest.importorskip("cv2")
    masks = {0: mask(tmp_path / "a.png", 0), 19: mask(tmp_path / "b.png", 304)}
    request = Request(task="inpaint", video=str(clip), masks=masks, frames=20, fps=10.0, height=32, width=600)
    found = carried(request)
    assert (found["frames"], found["width"], found["height"], found["columns"]) == (20, SIDE, 14, 16)
    sheet = sheet_of(found)
    assert sheet.shape == (2 * 14, 16 * SIDE)
    first, last = sheet[:14, :SIDE], sheet[14:, 3 * SIDE : 4 * SIDE]
    assert np.nonzero(first)[1].max() < 16 * SIDE / 600 + 2
    assert np.nonzero(last)[1].min() > 304 * SIDE / 600 - 2
    assert not sheet[14:, 4 * SIDE :].any()


def test_a_mask_beyond_the_clip_is_refused(clip, tmp_path):
    pytest.importorskip("cv2")
    masks = {20: mask(tmp_path / "a.png", 0)}
    request = Request(task="inpaint", video=str(clip), masks=masks, frames=20, fps=10.0, height=32, width=600)
    with pytest.raises(BadRequest, match="mask at 20 is beyond the end of the clip"):
        carried(request)
