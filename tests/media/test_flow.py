"""Painted masks carried along optical flow."""

from __future__ import annotations

import numpy as np
import pytest

from kinema.media.flow import Flows, carried

T, H, W = 9, 48, 80


def moving(speed: float, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    """A textured disc that moves to the right over a textured ground: frames T×H×W×3, and its true mask in each."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:H, 0:W].astype(float)
    ground = 90 + 25 * np.sin(x / 3.1) * np.cos(y / 2.7)
    texture = rng.normal(size=(64, 64)).cumsum(0).cumsum(1)
    texture = 170 + 60 * (texture - texture.mean()) / np.abs(texture - texture.mean()).max()
    frames, masks = [], []
    for t in range(T):
        left = 20 + speed * t
        mask = (x - left) ** 2 + (y - 24) ** 2 < 11**2
        on = texture[(y - 24 + 32).astype(int) % 64, np.floor(x - left + 32).astype(int) % 64]
        frames.append(np.repeat(np.where(mask, on, ground)[..., None], 3, -1).astype(np.uint8))
        masks.append(mask)
    return np.stack(frames), masks


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize("painted", [(0,), (8,), (4,), (0, 8), (2, 5)], ids=str)
def test_masks_follow_what_they_were_painted_on(painted: tuple[int, ...]) -> None:
    frames, masks = moving(2.0)
    found = carried({t: masks[t] for t in painted}, frames)
    assert found.shape == (T, H, W)
    assert all((found[t] == masks[t]).all() for t in painted)
    assert min(overlap(found[t], masks[t]) for t in range(T)) > 0.65
    still = [overlap(masks[painted[0]], masks[t]) for t in range(T)]
    assert min(still) < 0.5  # a mask that stays where it was painted would be far off


def test_masks_of_a_still_clip_stay_where_they_were_painted() -> None:
    frames, masks = moving(0.0)
    found = carried({3: masks[3]}, frames)
    assert all((each == masks[3]).all() for each in found)


def test_two_masks_are_mixed_by_distance_in_time() -> None:
    frames, masks = moving(0.0)
    none = np.zeros((H, W), bool)
    found = carried({0: masks[0], 8: none}, frames)
    assert [bool(each.any()) for each in found] == [True] * 5 + [False] * 4


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (7, 64), (14, 256), (256, 3)])
def test_small_and_narrow_frames_have_a_flow_of_their_own_shape(shape):
    rng = np.random.default_rng(0)
    flows = Flows(rng.integers(0, 256, (2, *shape), dtype=np.uint8))
    flow = flows.between(0, 1)
    assert flow.shape == (*shape, 2)
    assert np.isfinite(flow).all()
