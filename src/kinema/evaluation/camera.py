"""Estimate a clip's camera motion: the constant pan or zoom that best maps each frame's background to the next.

Objects are masked out (`objects`). Of a grid of pans and zooms, the one with the least squared error wins. It counts
only if its error is clearly below that of the opposite motion: a plain background fits every motion, and both smooth
noise equally by interpolation (compared with no motion, which does not smooth, zooms would be found in pure noise).

Letters: C channels, T frames, H W rows and columns, K candidate motions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kinema.evaluation.objects import dilate, find_objects

MOST_PAN, PAN_STEP = 0.064, 0.004
"""Widths per frame."""
MOST_ZOOM, ZOOM_STEP = 0.12, 0.02
"""Logarithm of the zoom per frame."""
LEAST_PAN, LEAST_ZOOM = 0.008, 0.02
GAIN = 0.75
"""The error must be below this share of the opposite motion's. With noise of a tenth of the range, still clips have
0.99 or more, zooms 0.49 to 0.72 and pans 0.41 to 0.82 (along stripes 1: those are missed); without noise, still
clips have 1, zooms at most 0.05 and pans at most 0.2."""
LEAST = 1e-4
"""Added to squared errors: the residual around an object on a plain background is about a hundredth of the range."""


@dataclass(frozen=True)
class CameraMotion:
    """Camera motion ``name``: "still", "pans left", "pans right", "zooms in" or "zooms out".

    ``pan`` is in widths per frame, positive to the right; ``zoom`` is the logarithm of the zoom per frame; at least one
    of them is 0. ``left`` is the squared error as a share of the opposite motion's, ``left_of_still`` as a share of no
    motion's.
    """

    name: str
    pan: float
    zoom: float
    left: float
    left_of_still: float


def camera_of(video_CTHW: Tensor) -> CameraMotion:
    """Estimate the camera motion of a clip 3×T×H×W in [-1, 1] with at least two frames."""
    pixels = ((video_CTHW.detach().float().cpu() + 1) / 2).clamp(0, 1).nan_to_num()
    background = torch.from_numpy(_background(pixels.numpy()))
    candidates = _candidates()
    error_K = torch.stack([_error(pixels, background, pan, zoom) for pan, zoom in candidates])
    best = int(error_K.argmin())
    pan, zoom = candidates[best]
    opposite, still = candidates.index((-pan, -zoom)), candidates.index((0.0, 0.0))
    left, left_of_still = (float((error_K[best] + LEAST) / (error_K[of] + LEAST)) for of in (opposite, still))
    if left >= GAIN or (abs(pan) < LEAST_PAN and abs(zoom) < LEAST_ZOOM):
        return CameraMotion("still", 0.0, 0.0, 1.0, 1.0)
    name = f"pans {'right' if pan > 0 else 'left'}" if pan else f"zooms {'in' if zoom > 0 else 'out'}"
    return CameraMotion(name, pan, zoom, left, left_of_still)


def _candidates() -> list[tuple[float, float]]:
    pans = [PAN_STEP * k for k in range(-round(MOST_PAN / PAN_STEP), round(MOST_PAN / PAN_STEP) + 1)]
    zooms = [ZOOM_STEP * k for k in range(-round(MOST_ZOOM / ZOOM_STEP), round(MOST_ZOOM / ZOOM_STEP) + 1) if k]
    return [(pan, 0.0) for pan in pans] + [(0.0, zoom) for zoom in zooms]


def _background(pixels_CTHW: np.ndarray) -> np.ndarray:
    """Mask [T, H, W]: 1 at least two pixels away from every object."""
    objects = np.zeros(pixels_CTHW.shape[1:], bool)
    for tracked in find_objects(pixels_CTHW):
        objects |= tracked.mask_THW
    return (~dilate(dilate(objects))).astype(np.float32)


def _error(pixels_CTHW: Tensor, background_THW: Tensor, pan: float, zoom: float) -> Tensor:
    """Mean squared error between each moved frame and the next, where both show background."""
    frames, height, width = pixels_CTHW.shape[1:]
    y, x = (torch.linspace(-1 + 1 / n, 1 - 1 / n, n) for n in (height, width))
    scale = math.exp(-zoom)
    # Where each pixel comes from: a pan moves the scene to the left, a zoom moves it away from the centre.
    source = torch.stack(torch.broadcast_tensors(scale * x[None, :] + 2 * pan, scale * y[:, None]), dim=-1)
    source = source.expand(frames - 1, -1, -1, -1)
    with_mask = torch.cat([pixels_CTHW, background_THW[None]])[:, :-1].transpose(0, 1)
    moved = F.grid_sample(with_mask, source, padding_mode="zeros", align_corners=False)
    counts = (moved[:, 3] > 0.99) & (background_THW[1:] > 0)
    error = (moved[:, :3].transpose(0, 1) - pixels_CTHW[:, 1:]).square().mean(0)
    return (error * counts).sum() / counts.sum().clamp_min(1)
