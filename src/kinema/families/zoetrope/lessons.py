"""What the sprite is taught of the scene graph beside the drawing: see docs/decisions/0002, point 10.

A clip has a sprite where one object stands before a camera that is still. Letters as in `sprite`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kinema.data.playroom import labels
from kinema.data.playroom.scene import Scene
from kinema.families.zoetrope.sprite import Seen
from kinema.families.zoetrope.turning import misturned
from kinema.families.zoetrope.warp import REACH, Pose, texels

LAYING, OUTLINING, SHAPING, POSING, TELLING = 0.5, 0.1, 0.3, 0.01, 0.02
"""Weights beside the drawing's: of the clip with the sprite alone, the cover frame by frame, the picture's outline, the
poses and `alone`."""
_DEEP = 0.3
"""Radii: a point this far from the outline is as far as any."""
_WHOLE = 0.2
"""Weight of the turn itself beside the turn as far as the outline shows it: marks turn too."""


class Truth(NamedTuple):
    """The scene graphs of a batch: ``alone`` B is 1 where a sprite can be the object, and all else means something
    only there. ``distance`` B×N×N of the upright outline, ``turns`` B by how many turns it falls on itself."""

    alone_B: Tensor
    pose: Pose
    distance_BNN: Tensor
    turns_B: Tensor


def truth(scenes: Sequence[Scene | None], made: Seen, side: int) -> Truth:
    """What the scene graphs say of the clips that ``made`` was made of, whose frames are ``side`` pixels."""
    texture, like = made.picture_BCNN.shape[-1], made.pose.turn_BT
    alone_B, turns_B = like.new_zeros(len(like)), like.new_zeros(len(like))
    distance_BNN = like.new_zeros(len(like), texture, texture)
    poses_BT5 = like.new_zeros(*like.shape, 5)
    for i, scene in enumerate(scenes):
        if scene is not None and len(scene.objects) == 1 and scene.camera == "still":
            glyph = scene.objects[0].glyph
            alone_B[i], turns_B[i] = 1, labels.turns(glyph)
            poses_BT5[i] = torch.from_numpy(labels.poses(scene))
            distance_BNN[i] = torch.from_numpy(labels.upright(glyph, texture, REACH))
    x, y, size, turn, visible = poses_BT5.unbind(-1)
    pose = Pose(torch.stack([x, y], -1) * side, (size * side / 2).clamp(min=1), turn, visible)
    return Truth(alone_B, pose, distance_BNN, turns_B)


def untold(made: Seen, scenes: Sequence[Scene | None], true: Truth) -> Tensor:
    """Cross-entropy of ``alone``, B; clips without a scene graph count nothing."""
    known_B = torch.tensor([s is not None for s in scenes], device=made.alone_B.device)
    return known_B * F.binary_cross_entropy_with_logits(made.alone_B, true.alone_B, reduction="none")


def misshapen(picture_BCNN: Tensor, true: Truth) -> Tensor:
    """How far the picture's outline is from the glyph's, in radii, mostly where either runs, B."""
    made, wanted = (d.clamp(-_DEEP, _DEEP) for d in (picture_BCNN[:, -1], true.distance_BNN))
    # Beyond the clamp a wrong distance has no gradient: a part of it is held without.
    wrong = (made - wanted).abs() + 0.1 * F.smooth_l1_loss(picture_BCNN[:, -1], true.distance_BNN, reduction="none")
    near = (torch.minimum(made.detach().abs(), wanted.abs()) < 0.5 * _DEEP).to(wrong)
    weight = within(picture_BCNN) * (0.2 + near)
    return true.alone_B * (wrong * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)


def within(picture_BCNN: Tensor) -> Tensor:
    """1 at texels within 1.3 radii, N×N: no cover lies further out."""
    along = texels(picture_BCNN.shape[-1], picture_BCNN).abs() < 1.3
    return (along[:, None] & along).to(picture_BCNN)


def misposed(made: Seen, true: Truth) -> Tensor:
    """How far poses are off, B: pixels (below one squared), tenths of radii and turn, means over frames as far as they
    show the object; and visibility, of all frames."""
    place = F.smooth_l1_loss(made.pose.centre_BT2, true.pose.centre_BT2, reduction="none").sum(-1)
    size = 10 * (made.pose.radius_BT / true.pose.radius_BT).log().abs()
    turn = misturned(made.turn_BTA, true.pose.turn_BT, true.turns_B, _WHOLE)
    visible = F.binary_cross_entropy_with_logits(made.visible_BT, true.pose.visible_BT, reduction="none")
    weight_BT = true.pose.visible_BT + 0.05
    off_BT = (place + size + turn) * weight_BT
    return true.alone_B * (off_BT.sum(1) / weight_BT.sum(1) + visible.mean(1))
