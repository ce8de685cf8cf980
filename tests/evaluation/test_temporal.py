from __future__ import annotations

import pytest
import torch

from kinema.data import playroom
from kinema.evaluation import metrics, temporal


def clip() -> torch.Tensor:
    return torch.from_numpy(playroom.sample(0, caption="a red ball rolls right", height=32, width=32).video_CTHW)


def test_the_measures_equal_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporal, "has_flow", lambda: False)
    video = clip()
    found = temporal.temporal(video, 8.0)
    assert found["jerk"] == pytest.approx(float(metrics.jerk(video[None])))
    assert found["flickering"] == pytest.approx(float(metrics.flickering(video[None])))
    # A flickering of 1 - d is a mean change of d of the range per frame.
    assert found["motion_amount"] == pytest.approx((1 - found["flickering"]) * 8)
    assert "interpolation_residual" not in found


def test_flow_measures_require_opencv() -> None:
    pytest.importorskip("cv2")
    found = temporal.temporal(clip(), 8.0)
    assert found["interpolation_residual"] > 0
    assert found["dynamic_degree"] > 0


def test_a_jump_at_every_block_border_is_relative_to_the_change_inside() -> None:
    steps = torch.tensor([0.01, 0.01, 0.01, 0.05, 0.01, 0.01, 0.01])
    video = torch.cat([torch.zeros(1), steps.cumsum(0)])[None, :, None, None].expand(3, 8, 4, 4)
    assert temporal.border_change(video, 4)["block_borders"] == pytest.approx(5, rel=1e-4)


def test_blocks_of_one_frame_and_clips_of_one_block_have_no_border_measure() -> None:
    video = torch.zeros(3, 8, 4, 4)
    assert temporal.border_change(video, 1) == temporal.border_change(video, 8) == {}


def test_a_still_clip_has_a_finite_border_measure() -> None:
    assert temporal.border_change(torch.zeros(3, 8, 4, 4), 4) == {"block_borders": 0}
