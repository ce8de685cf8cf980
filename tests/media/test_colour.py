from __future__ import annotations

import numpy as np
import pytest
import torch

from kinema.media.colour import over_black, to_float, to_uint8
from kinema.schema import BadRequest


def test_every_level_of_every_channel_survives_the_round_trip() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    frames_THWC = np.concatenate([levels, levels[..., ::-1, :]])
    assert np.array_equal(to_uint8(to_float(frames_THWC))[0], frames_THWC)


def test_black_is_minus_one_and_white_is_plus_one() -> None:
    video = to_float(np.stack([np.zeros((2, 3, 3), np.uint8), np.full((2, 3, 3), 255, np.uint8)]))
    assert video.shape == (1, 3, 2, 2, 3)
    assert video[:, :, 0].unique().tolist() == [-1.0]
    assert video[:, :, 1].unique().tolist() == [1.0]


def test_channels_and_axes_keep_their_order() -> None:
    frames_THWC = np.zeros((2, 4, 5, 3), np.uint8)
    frames_THWC[1, 3, 2, 0] = 255
    assert to_float(frames_THWC)[0, 0, 1, 3, 2] == 1.0
    assert (to_float(frames_THWC) > 0).sum() == 1


def test_values_outside_the_range_are_clamped_not_wrapped() -> None:
    video = torch.tensor([-3.0, 3.0]).reshape(1, 1, 1, 1, 2).expand(1, 3, 1, 1, 2)
    assert to_uint8(video)[0, 0, 0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(BadRequest, match="NaN or infinite"):
        to_uint8(torch.full((1, 3, 1, 2, 2), value))


def test_half_precision_gives_the_nearest_level() -> None:
    frames_THWC = np.full((1, 2, 2, 3), 200, np.uint8)
    assert np.abs(to_uint8(to_float(frames_THWC).bfloat16())[0].astype(int) - 200).max() <= 1


def test_alpha_is_over_black() -> None:
    rgba = np.array([[[[255, 100, 0, 0], [255, 100, 0, 255], [255, 100, 0, 128]]]], np.uint8)
    assert over_black(rgba[0])[0].tolist() == [[0, 0, 0], [255, 100, 0], [128, 50, 0]]
