"""All temporal measures of one clip, by name, that this machine can compute."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from torch import Tensor

from kinema.evaluation import metrics

STILL = 0.5 / 255
"""Floor for mean change in ratios: a quarter of a grey level, for pixels in [-1, 1]."""


def temporal(video_CTHW: Tensor, fps: float) -> dict[str, float]:
    """Measures of a clip 3×T×H×W in [-1, 1]; optical-flow measures require OpenCV.

    Warp error is omitted: it rewards blur and frozen frames and misses camera jitter.
    """
    video = video_CTHW[None].float()
    found = {
        "jerk": metrics.jerk(video),
        "high_frequency_ratio": metrics.high_frequency_ratio(video),
        "luma_second_difference": metrics.luma_second_difference(video),
    }
    if has_flow():
        found["interpolation_residual"] = metrics.interpolation_residual(video)
    found["flickering"] = metrics.flickering(video)
    found["sharpness"] = metrics.sharpness(video)
    if has_flow():
        found["dynamic_degree"] = metrics.dynamic_degree(video, fps)
    found["motion_amount"] = video.double().diff(dim=2).abs().mean((1, 2, 3, 4)) / 2 * fps
    return {name: float(value) for name, value in found.items()}


def border_change(video_CTHW: Tensor, block: int) -> dict[str, float]:
    """Mean change across the borders of blocks of ``block`` frames over the mean change inside them.

    Empty for blocks of one frame (no inside) and for clips of one block.
    """
    frames = video_CTHW.shape[1]
    if block < 2 or frames <= block:
        return {}
    change_T = video_CTHW.double().diff(dim=1).abs().mean(dim=(0, 2, 3))
    at_border = [t for t in range(frames - 1) if (t + 1) % block == 0]
    inside = [t for t in range(frames - 1) if (t + 1) % block]
    return {"block_borders": float(change_T[at_border].mean() / change_T[inside].mean().clamp(min=STILL))}


@cache
def has_flow() -> bool:
    """Whether OpenCV is installed, which optical flow requires."""
    return find_spec("cv2") is not None
