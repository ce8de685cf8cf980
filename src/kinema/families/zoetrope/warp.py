"""A picture laid over every frame at a pose, and frames seen from the picture: a spatial transformer without weights.

"Spatial Transformer Networks" (Jaderberg et al. 2015): every point asks, by its coordinates, for a bilinear look-up,
so gradients reach the picture and the pose. The object's own frame is the playroom's: x to the right, y downwards, in
radii of the object, upright. Its outline is kept as the signed distance to it in radii (negative inside; Green 2007): a
pixel's cover is then ``clip(1/2 - distance · radius)`` in pixels, hard-edged at every size, and exactly 0 outside. That
is the area of the pixel inside a straight edge, so brightness keeps still under motion with one look-up a pixel.

Letters: B clips, C channels, T H W frames, rows and columns, N the picture's side, P points. All in float32 or float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

REACH = 1.4
"""Half the picture's side, in radii: every outline lies within 1.25 (`playroom.shapes.EXTENT`)."""
_WITHIN = 1.3
"""No cover further out than this, whatever the picture says: a square's ghost on the sky else."""


class Pose(NamedTuple):
    """Where the object's frame lies in every frame of a clip: pixels, radians clockwise, and how opaque (0 to 1)."""

    centre_BT2: Tensor
    radius_BT: Tensor
    turn_BT: Tensor
    visible_BT: Tensor


def laid(picture_BCNN: Tensor, pose: Pose, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The picture's colours B×(C-1)×T×H×W at the pose, and its cover B×1×T×H×W, as though it were wholly visible.

    The last channel of the picture is the signed distance.
    """
    at_BTHW2 = local(pixels(height, width, picture_BCNN), pose)
    seen_BCTHW = looked_up(picture_BCNN, at_BTHW2)
    distance_BTHW = torch.maximum(seen_BCTHW[:, -1], at_BTHW2.abs().amax(-1) - _WITHIN)
    cover_BTHW = (0.5 - distance_BTHW * pose.radius_BT[..., None, None]).clamp(0, 1)
    return seen_BCTHW[:, :-1], cover_BTHW[:, None]


def lifted(frames_BCTHW: Tensor, pose: Pose, side: int) -> Tensor:
    """Every frame as seen from the object's frame, B×C×T×N×N: what `laid` undoes. 0 outside the frame."""
    along = texels(side, frames_BCTHW)
    return seen_at(frames_BCTHW, torch.stack(torch.meshgrid(along, along, indexing="xy"), -1), pose)


def seen_at(frames_BCTHW: Tensor, own_NN2: Tensor, pose: Pose) -> Tensor:
    """Every frame at points of the object's frame, B×C×T×N×N; 0 outside the frame."""
    height, width = frames_BCTHW.shape[-2:]
    at_BTNN2 = abroad(own_NN2, pose)
    unit = at_BTNN2 / at_BTNN2.new_tensor([width / 2, height / 2]) - 1
    found = F.grid_sample(
        frames_BCTHW.transpose(1, 2).flatten(0, 1), unit.flatten(0, 1), align_corners=False, padding_mode="zeros"
    )
    return found.unflatten(0, (frames_BCTHW.shape[0], -1)).transpose(1, 2)


def looked_up(picture_BCNN: Tensor, at_BTHW2: Tensor) -> Tensor:
    """The picture at points of the object's frame, B×C×T×H×W; beyond its border, the border's."""
    times = at_BTHW2.shape[1]
    unit = (at_BTHW2 / REACH).flatten(1, 2)  # all frames of a clip below each other: one look-up
    found = F.grid_sample(picture_BCNN, unit, align_corners=False, padding_mode="border")
    return found.unflatten(2, (times, -1))


def local(at_HW2: Tensor, pose: Pose) -> Tensor:
    """Points of the frames, in pixels, as points of the object's frame, B×T×H×W×2."""
    off = (at_HW2 - pose.centre_BT2[:, :, None, None]) / pose.radius_BT[:, :, None, None, None]
    return _turned(off, -pose.turn_BT)


def abroad(own_NN2: Tensor, pose: Pose) -> Tensor:
    """Points of the object's frame as points of the frames, in pixels, B×T×N×N×2."""
    own = own_NN2.expand(*pose.turn_BT.shape, *own_NN2.shape)
    return _turned(own, pose.turn_BT) * pose.radius_BT[:, :, None, None, None] + pose.centre_BT2[:, :, None, None]


def pixels(height: int, width: int, like: Tensor) -> Tensor:
    """The middle of every pixel, x and y, H×W×2."""
    x, y = (torch.arange(n, dtype=like.dtype, device=like.device) + 0.5 for n in (width, height))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def texels(side: int, like: Tensor) -> Tensor:
    """The middle of every texel along a side of the picture, in radii, N."""
    return (torch.arange(side, dtype=like.dtype, device=like.device) + 0.5) * (2 * REACH / side) - REACH


def _turned(at_BTHW2: Tensor, turn_BT: Tensor) -> Tensor:
    cos, sin = (part[:, :, None, None] for part in (turn_BT.cos(), turn_BT.sin()))
    x, y = at_BTHW2.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], -1)
