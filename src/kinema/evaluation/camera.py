"""How the camera of a clip moves: the steady pan or zoom under which each frame's background becomes the next one's.

The object is left out (`sighting`). Of pans and zooms on a grid the one is taken that leaves the least squared
difference. It counts if it leaves clearly less than the opposite motion does: a plain background looks alike under
every motion, and noise, which a motion smooths between pixels, is smoothed alike by both (beside no motion, which
smooths nothing, zooms would count in noise alone).

Letters: C channels, T frames, H W rows and columns, K motions tried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kinema.evaluation.sighting import dilate, sight

MOST_PAN, PAN_STEP = 0.064, 0.004
"""Widths a frame."""
MOST_ZOOM, ZOOM_STEP = 0.12, 0.02
"""Logarithm of the zoom of a frame."""
LEAST_PAN, LEAST_ZOOM = 0.008, 0.02
GAIN = 0.75
"""The difference left must be below this share of what the opposite motion leaves. In noise of a tenth of the range
true still clips leave 0.99 and more, true zooms 0.49 to 0.72, and pans 0.41 to 0.82 (along stripes 1: those are
missed); without noise it is 1, at most 0.05 and at most 0.2."""
LEAST = 1e-4
"""Added to squared differences: a hundredth of the range is what is left about an object on a plain background."""


@dataclass(frozen=True)
class CameraSeen:
    """``name`` is "still", "pans left", "pans right", "zooms in" or "zooms out".

    ``pan`` is widths a frame that the camera goes to the right, ``zoom`` the logarithm of its zoom of a frame; one of
    the two is 0. ``left`` is the squared difference that is left, as a share of what the opposite motion leaves, and
    ``left_of_still`` of what no motion leaves.
    """

    name: str
    pan: float
    zoom: float
    left: float
    left_of_still: float


def camera_of(video_CTHW: Tensor) -> CameraSeen:
    """The camera of a clip 3×T×H×W in [-1, 1] of two frames or more."""
    pixels = ((video_CTHW.detach().float().cpu() + 1) / 2).clamp(0, 1).nan_to_num()
    behind = torch.from_numpy(_background(pixels.numpy()))
    tried = _tried()
    error_K = torch.stack([_difference(pixels, behind, pan, zoom) for pan, zoom in tried])
    best = int(error_K.argmin())
    pan, zoom = tried[best]
    opposite, still = tried.index((-pan, -zoom)), tried.index((0.0, 0.0))
    left, left_of_still = (float((error_K[best] + LEAST) / (error_K[of] + LEAST)) for of in (opposite, still))
    if left >= GAIN or (abs(pan) < LEAST_PAN and abs(zoom) < LEAST_ZOOM):
        return CameraSeen("still", 0.0, 0.0, 1.0, 1.0)
    name = f"pans {'right' if pan > 0 else 'left'}" if pan else f"zooms {'in' if zoom > 0 else 'out'}"
    return CameraSeen(name, pan, zoom, left, left_of_still)


def _tried() -> list[tuple[float, float]]:
    pans = [PAN_STEP * k for k in range(-round(MOST_PAN / PAN_STEP), round(MOST_PAN / PAN_STEP) + 1)]
    zooms = [ZOOM_STEP * k for k in range(-round(MOST_ZOOM / ZOOM_STEP), round(MOST_ZOOM / ZOOM_STEP) + 1) if k]
    return [(pan, 0.0) for pan in pans] + [(0.0, zoom) for zoom in zooms]


def _background(pixels_CTHW: np.ndarray) -> np.ndarray:
    """1 where no object is nor near it, [T, H, W]."""
    objects = np.zeros(pixels_CTHW.shape[1:], bool)
    for sighting in sight(pixels_CTHW):
        objects |= sighting.mask_THW
    return (~dilate(dilate(objects))).astype(np.float32)


def _difference(pixels_CTHW: Tensor, behind_THW: Tensor, pan: float, zoom: float) -> Tensor:
    """Mean squared difference of each frame, moved, and the next, where both show background."""
    frames, height, width = pixels_CTHW.shape[1:]
    y, x = (torch.linspace(-1 + 1 / n, 1 - 1 / n, n) for n in (height, width))
    scale = math.exp(-zoom)
    # Where the next frame's pixel was: the camera's pan moves the world to the left, its zoom away from the middle.
    source = torch.stack(torch.broadcast_tensors(scale * x[None, :] + 2 * pan, scale * y[:, None]), dim=-1)
    source = source.expand(frames - 1, -1, -1, -1)
    with_mask = torch.cat([pixels_CTHW, behind_THW[None]])[:, :-1].transpose(0, 1)
    moved = F.grid_sample(with_mask, source, padding_mode="zeros", align_corners=False)
    counts = (moved[:, 3] > 0.99) & (behind_THW[1:] > 0)
    error = (moved[:, :3].transpose(0, 1) - pixels_CTHW[:, 1:]).square().mean(0)
    return (error * counts).sum() / counts.sum().clamp_min(1)
