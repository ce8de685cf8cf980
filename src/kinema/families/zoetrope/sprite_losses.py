"""Losses of the sprite against the scene graph: see docs/notes/0002, entry 10.

A clip has a sprite if it shows a single object and its camera is static. Letters as in `sprite`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kinema.data.playroom import labels
from kinema.data.playroom.scene import Scene
from kinema.families.zoetrope.rotation import rotation_loss
from kinema.families.zoetrope.sprite import SpriteEstimate
from kinema.families.zoetrope.warp import HALF_SIDE, Pose, texel_centres

COMPOSITE_WEIGHT, COVER_WEIGHT, SHAPE_WEIGHT, POSE_WEIGHT, SINGLE_WEIGHT = 0.5, 0.1, 0.3, 0.01, 0.02
"""Loss weights, relative to the main loss: clip composited from the sprite, per-frame coverage, sprite outline, poses,
and the single-object logit."""
_MAX_DISTANCE = 0.3
"""Clamp of distances to the outline, in radii."""
_ANGLE_WEIGHT = 0.2
"""Weight of the exact angle relative to the angle up to the outline's symmetry: marks rotate too."""


class Targets(NamedTuple):
    """Targets from a batch's scene graphs: ``single`` B is 1 for clips with a sprite; the rest is valid only there.

    ``distance`` B×N×N is the signed distance of the upright outline, ``symmetry`` B its order of rotational symmetry.
    """

    single_B: Tensor
    pose: Pose
    distance_BNN: Tensor
    symmetry_B: Tensor


def scene_targets(scenes: Sequence[Scene | None], estimate: SpriteEstimate, side: int) -> Targets:
    """Build the targets for an estimate from the scene graphs of its clips, whose frames have ``side`` pixels."""
    texture, like = estimate.sprite_BCNN.shape[-1], estimate.pose.angle_BT
    single_B, symmetry_B = like.new_zeros(len(like)), like.new_zeros(len(like))
    distance_BNN = like.new_zeros(len(like), texture, texture)
    poses_BT5 = like.new_zeros(*like.shape, 5)
    for i, scene in enumerate(scenes):
        if scene is not None and len(scene.objects) == 1 and scene.camera == "still":
            glyph = scene.objects[0].glyph
            single_B[i], symmetry_B[i] = 1, labels.turns(glyph)
            poses_BT5[i] = torch.from_numpy(labels.poses(scene))
            distance_BNN[i] = torch.from_numpy(labels.upright(glyph, texture, HALF_SIDE))
    x, y, size, turn, visible = poses_BT5.unbind(-1)
    pose = Pose(torch.stack([x, y], -1) * side, (size * side / 2).clamp(min=1), turn, visible)
    return Targets(single_B, pose, distance_BNN, symmetry_B)


def single_object_loss(estimate: SpriteEstimate, scenes: Sequence[Scene | None], target: Targets) -> Tensor:
    """Cross-entropy of the single-object logit, B; 0 for clips without a scene graph."""
    labelled_B = torch.tensor([s is not None for s in scenes], device=estimate.single_B.device)
    return labelled_B * F.binary_cross_entropy_with_logits(estimate.single_B, target.single_B, reduction="none")


def shape_loss(sprite_BCNN: Tensor, target: Targets) -> Tensor:
    """Error of the sprite's signed distance, in radii, weighted toward the two outlines, B."""
    estimate, expected = (d.clamp(-_MAX_DISTANCE, _MAX_DISTANCE) for d in (sprite_BCNN[:, -1], target.distance_BNN))
    # The clamped term has no gradient far from the outline, so a small unclamped term is added.
    unclamped = F.smooth_l1_loss(sprite_BCNN[:, -1], target.distance_BNN, reduction="none")
    error = (estimate - expected).abs() + 0.1 * unclamped
    near = (torch.minimum(estimate.detach().abs(), expected.abs()) < 0.5 * _MAX_DISTANCE).to(error)
    weight = coverable(sprite_BCNN) * (0.2 + near)
    return target.single_B * (error * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)


def coverable(sprite_BCNN: Tensor) -> Tensor:
    """Mask of texels within 1.3 radii, N×N; coverage is 0 further out."""
    along = texel_centres(sprite_BCNN.shape[-1], sprite_BCNN).abs() < 1.3
    return (along[:, None] & along).to(sprite_BCNN)


def pose_loss(estimate: SpriteEstimate, target: Targets) -> Tensor:
    """Error of the poses, B: position (pixels, smooth L1), log radius (×10) and angle, averaged over frames weighted by
    visibility, plus the cross-entropy of visibility averaged over all frames."""
    place = F.smooth_l1_loss(estimate.pose.centre_BT2, target.pose.centre_BT2, reduction="none").sum(-1)
    size = 10 * (estimate.pose.radius_BT / target.pose.radius_BT).log().abs()
    turn = rotation_loss(estimate.angle_BTA, target.pose.angle_BT, target.symmetry_B, _ANGLE_WEIGHT)
    visible = F.binary_cross_entropy_with_logits(estimate.visible_BT, target.pose.visible_BT, reduction="none")
    weight_BT = target.pose.visible_BT + 0.05
    error_BT = (place + size + turn) * weight_BT
    return target.single_B * (error_BT.sum(1) / weight_BT.sum(1) + visible.mean(1))
