"""Estimated camera motion in scenes with a known camera."""

from __future__ import annotations

import pytest
import torch

from kinema.data import playroom
from kinema.evaluation.camera import camera_of


def clip(seed, **fixed):
    return torch.from_numpy(playroom.sample(seed, frames=8, fps=6.0, grammar="simple", **fixed).video_CTHW)


@pytest.mark.parametrize("background", ["checkered", "striped", "speckled"])
@pytest.mark.parametrize("camera", playroom.CAMERAS)
def test_camera_motion_and_speed_are_estimated(camera, background):
    for seed in range(2):
        estimate = camera_of(clip(seed, background=background, camera=camera))
        assert estimate.name == camera
        if camera.startswith("pans"):
            assert abs(estimate.pan) == pytest.approx(0.26 / 8, abs=0.003)
            assert (estimate.pan > 0, estimate.zoom) == (camera == "pans right", 0)
        else:
            assert abs(estimate.zoom) == pytest.approx(0.55 / 8, abs=0.02)
            assert (estimate.zoom > 0, estimate.pan) == (camera == "zooms in", 0)


@pytest.mark.parametrize("background", ["checkered", "plain grey", "gradient"])
def test_a_still_camera_is_still_despite_moving_objects(background):
    for seed, motion in enumerate(("rolls right", "slides left", "grows", "orbits")):
        estimate = camera_of(clip(seed, background=background, motion=motion, split="all"))
        assert (estimate.name, estimate.pan, estimate.zoom) == ("still", 0.0, 0.0)


@pytest.mark.parametrize(("background", "least"), [("checkered", 24), ("striped", 17)])
def test_noise_is_not_motion_and_hides_little_of_it(background, least):
    """Noise of a tenth of the range, which motion smooths by interpolation. Pans along stripes are missed in it."""
    torch.manual_seed(0)
    right = 0
    for seed in range(6):
        still = clip(seed, background=background, motion="moves up", split="all")
        assert camera_of(still + 0.2 * torch.randn(still.shape)).name == "still"
        for camera in playroom.CAMERAS:
            true = clip(seed, background=background, motion="moves up", split="all", camera=camera)
            right += camera_of(true + 0.2 * torch.randn(true.shape)).name == camera
    assert right >= least


def test_pure_noise_and_nan_are_still():
    torch.manual_seed(0)
    assert camera_of(torch.randn(3, 8, 64, 64)).name == "still"
    assert camera_of(torch.full((3, 2, 64, 64), torch.nan)).name == "still"
