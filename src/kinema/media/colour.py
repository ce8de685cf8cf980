"""Conversion between uint8 pixels and float in [-1, 1]; no other module converts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kinema.schema import BadRequest

if TYPE_CHECKING:
    from torch import Tensor


def to_float(frames_THWC: np.ndarray | Sequence[np.ndarray]) -> Tensor:
    """Convert uint8 H×W×3 frames to float32 1×3×T×H×W in [-1, 1]; `to_uint8` restores the same bytes."""
    import torch

    height, width = frames_THWC[0].shape[:2]
    video_CTHW = torch.empty(3, len(frames_THWC), height, width)
    for t, frame_HWC in enumerate(frames_THWC):  # frame by frame: only one float copy of a long clip fits in memory
        if frame_HWC.dtype != np.uint8 or frame_HWC.shape != (height, width, 3):
            raise ValueError(f"expected uint8 {height}×{width}×3, got {frame_HWC.dtype} {frame_HWC.shape}")
        video_CTHW[:, t] = torch.from_numpy(frame_HWC.transpose(2, 0, 1).copy())
    return video_CTHW.div_(127.5).sub_(1).unsqueeze(0)


def to_uint8(video_BCTHW: Tensor) -> np.ndarray:
    """Convert float B×3×T×H×W in [-1, 1] (clamped) to uint8 B×T×H×W×3, rounded to the nearest level."""
    import torch

    if video_BCTHW.ndim != 5 or video_BCTHW.shape[1] != 3:
        raise BadRequest(f"the clip has shape {'×'.join(map(str, video_BCTHW.shape))}; expected B×3×T×H×W")
    pixels_BCTHW = video_BCTHW.detach().to("cpu", torch.float32)
    if not bool(pixels_BCTHW.isfinite().all()):
        raise BadRequest("the clip contains NaN or infinite pixels; cannot write it")
    levels = pixels_BCTHW.add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 4, 1).contiguous().numpy()


def swscale_flags() -> int:
    """swscale flags for accurate YUV↔RGB conversion: the default rounds down by a level (38 dB PSNR instead of 51)."""
    from av.video.reformatter import Interpolation

    return int(
        Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
    )


def over_black(pixels_HWA: np.ndarray) -> np.ndarray:
    """Composite uint8 H×W×4 with straight alpha over black, to H×W×3."""
    if pixels_HWA[..., 3].min(initial=255) == 255:  # the usual case; compositing takes ten times as long as this check
        return np.ascontiguousarray(pixels_HWA[..., :3])
    alpha = pixels_HWA[..., 3:].astype(np.uint16)
    return ((pixels_HWA[..., :3] * alpha + 127) // 255).astype(np.uint8)
