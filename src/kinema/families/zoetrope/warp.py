"""Warp a sprite into every frame at a pose, and frames into sprite coordinates: a spatial transformer without weights.

"Spatial Transformer Networks" (Jaderberg et al. 2015): points are sampled bilinearly, so gradients reach the sprite and
the pose. Object coordinates are those of the playroom: x to the right, y down, in radii of the object, upright. The
outline is stored as a signed distance in radii (negative inside; Green 2007). A pixel's coverage is
``clip(1/2 - distance · radius)`` in pixels: hard-edged at every size, exactly 0 outside, and equal to the pixel's area
inside a straight edge, so brightness is stable under motion with one sample per pixel.

Letters: B clips, C channels, T H W frames, rows and columns, N the sprite's side, P points. All in float32 or float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

HALF_SIDE = 1.4
"""Half the sprite's side, in radii; every outline is within 1.25 (`playroom.shapes.EXTENT`)."""
_MAX_COVER = 1.3
"""Radii beyond which coverage is 0 regardless of the sprite; without it a faint square shows on the background."""


class Pose(NamedTuple):
    """An object's pose in every frame of a clip: centre and radius in pixels, radians clockwise, opacity (0 to 1)."""

    centre_BT2: Tensor
    radius_BT: Tensor
    angle_BT: Tensor
    visible_BT: Tensor


def to_frames(sprite_BCNN: Tensor, pose: Pose, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the sprite's colours B×(C-1)×T×H×W at the pose, and its coverage B×1×T×H×W at full opacity.

    The last channel of the sprite is the signed distance.
    """
    at_BTHW2 = to_object_points(pixel_centres(height, width, sprite_BCNN), pose)
    sampled_BCTHW = sample_sprite(sprite_BCNN, at_BTHW2)
    distance_BTHW = torch.maximum(sampled_BCTHW[:, -1], at_BTHW2.abs().amax(-1) - _MAX_COVER)
    cover_BTHW = (0.5 - distance_BTHW * pose.radius_BT[..., None, None]).clamp(0, 1)
    return sampled_BCTHW[:, :-1], cover_BTHW[:, None]


def to_sprite(frames_BCTHW: Tensor, pose: Pose, side: int) -> Tensor:
    """Resample every frame in object coordinates, B×C×T×N×N: the inverse of `to_frames`. 0 outside the frame."""
    along = texel_centres(side, frames_BCTHW)
    return sample_frames(frames_BCTHW, torch.stack(torch.meshgrid(along, along, indexing="xy"), -1), pose)


def sample_frames(frames_BCTHW: Tensor, points_NN2: Tensor, pose: Pose) -> Tensor:
    """Sample every frame at points in object coordinates, B×C×T×N×N; 0 outside the frame."""
    height, width = frames_BCTHW.shape[-2:]
    at_BTNN2 = to_frame_points(points_NN2, pose)
    unit = at_BTNN2 / at_BTNN2.new_tensor([width / 2, height / 2]) - 1
    sampled = F.grid_sample(
        frames_BCTHW.transpose(1, 2).flatten(0, 1), unit.flatten(0, 1), align_corners=False, padding_mode="zeros"
    )
    return sampled.unflatten(0, (frames_BCTHW.shape[0], -1)).transpose(1, 2)


def sample_sprite(sprite_BCNN: Tensor, at_BTHW2: Tensor) -> Tensor:
    """Sample the sprite at points in object coordinates, B×C×T×H×W; points outside take the border's value."""
    times = at_BTHW2.shape[1]
    unit = (at_BTHW2 / HALF_SIDE).flatten(1, 2)  # all frames of a clip in one call
    sampled = F.grid_sample(sprite_BCNN, unit, align_corners=False, padding_mode="border")
    return sampled.unflatten(2, (times, -1))


def to_object_points(at_HW2: Tensor, pose: Pose) -> Tensor:
    """Convert points of the frames, in pixels, to object coordinates, B×T×H×W×2."""
    off = (at_HW2 - pose.centre_BT2[:, :, None, None]) / pose.radius_BT[:, :, None, None, None]
    return _rotate(off, -pose.angle_BT)


def to_frame_points(points_NN2: Tensor, pose: Pose) -> Tensor:
    """Convert points in object coordinates to points of the frames, in pixels, B×T×N×N×2."""
    points = points_NN2.expand(*pose.angle_BT.shape, *points_NN2.shape)
    return _rotate(points, pose.angle_BT) * pose.radius_BT[:, :, None, None, None] + pose.centre_BT2[:, :, None, None]


def pixel_centres(height: int, width: int, like: Tensor) -> Tensor:
    """Centre of every pixel, x and y, H×W×2."""
    x, y = (torch.arange(n, dtype=like.dtype, device=like.device) + 0.5 for n in (width, height))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def texel_centres(side: int, like: Tensor) -> Tensor:
    """Centre of every texel along a side of the sprite, in radii, N."""
    return (torch.arange(side, dtype=like.dtype, device=like.device) + 0.5) * (2 * HALF_SIDE / side) - HALF_SIDE


def _rotate(at_BTHW2: Tensor, angle_BT: Tensor) -> Tensor:
    cos, sin = (part[:, :, None, None] for part in (angle_BT.cos(), angle_BT.sin()))
    x, y = at_BTHW2.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], -1)
