"""Losses that use the scene graphs of rendered clips: see docs/notes/0002, entries 5 and 6.

Letters: B clips, T frames, H W rows and columns, S places (frames × rows × columns of a grid), K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from kinema.data.playroom import CAMERAS, labels
from kinema.diffusion.parameterise import X0
from kinema.diffusion.schedules import NoiseLevel

if TYPE_CHECKING:
    from kinema.data.playroom.scene import Scene

VIEWS = ("still", *CAMERAS)
READING_CLASSES = (*labels.CLASSES, len(VIEWS))
"""Number of classes of glyph, colour and motion at each place (0: no object), and of the camera, alike everywhere."""
FAR = 6
"""Offsets are clamped to this many cells."""
OFFSET_CLASSES = (2 * FAR + 1, 2 * FAR + 1)
"""Number of classes of the offset of the first object's centre, in cells to the right and down."""
EMPTY_WEIGHT = 0.1
"""Weight of a place without an object: nine of ten are empty."""
MIN_SIGMA = 0.3
"""Bound of the pixel loss weight 1 / sigma², the weight of a flow's velocity loss."""
OBJECT_WEIGHT, OBJECT_MAX_SIGMA = 4.0, 0.92
"""Additional weight of pixels around objects, applied below this sigma: textures otherwise dominate the loss, but at
higher noise, where positions are undecided, the weight would teach the model to put objects everywhere."""


def pixel_loss(
    image_BCTHW: Tensor, video_BCTHW: Tensor, scenes: Sequence[Scene | None], level: NoiseLevel, mask_B1THW: Tensor
) -> Tensor:
    """Weighted squared error of predicted pixels where the mask is 1, [B]; sigma is that of a flow."""
    sigma = level.sigma / (level.alpha + level.sigma)
    weights = mask_B1THW.to(image_BCTHW)
    if any(scenes):
        extra = OBJECT_WEIGHT * ((OBJECT_MAX_SIGMA - sigma) / 0.1).clamp(0, 1).to(image_BCTHW)
        weights = weights * (1 + extra[:, None, None, None, None] * object_mask(scenes, image_BCTHW))
    return X0.loss(
        image_BCTHW,
        video_BCTHW,
        image_BCTHW,
        level,
        weighting=lambda _: sigma.clamp(min=MIN_SIGMA).pow(-2),
        mask=weights,
    )


def reading_loss(
    logits_BSK: Tensor, scenes: Sequence[Scene | None], grid: tuple[int, int, int], *, camera: bool = True
) -> Tensor:
    """Cross-entropy of the `READING_CLASSES` logits at every place against the scene graphs, [B]; 0 without a graph.

    With ``camera`` False, K excludes the camera's classes.
    """
    empty = torch.zeros(3, *grid, dtype=torch.long)
    classes = torch.stack([empty if s is None else torch.from_numpy(labels.on_grid(s, grid)) for s in scenes])
    target_BNS = classes.flatten(2)
    if camera:
        view_B = torch.tensor([0 if s is None else VIEWS.index(s.camera) for s in scenes])
        target_BNS = torch.cat([target_BNS, view_B[:, None, None].expand(-1, 1, target_BNS.shape[2])], 1)
    target_BNS = target_BNS.to(logits_BSK.device)
    weight_BS = torch.where(target_BNS[:, 0] > 0, 1.0, EMPTY_WEIGHT)
    known_B = torch.tensor([s is not None for s in scenes], device=logits_BSK.device)
    groups = logits_BSK.split(READING_CLASSES if camera else labels.CLASSES, dim=-1)
    losses = [F.cross_entropy(k.mT, target_BNS[:, i], reduction="none") for i, k in enumerate(groups)]
    return known_B * (torch.stack(losses).sum(0) * weight_BS).sum(1) / weight_BS.sum(1)


def location_loss(logits_BSK: Tensor, scenes: Sequence[Scene | None], grid: tuple[int, int, int]) -> Tensor:
    """Cross-entropy of the `OFFSET_CLASSES` logits against the first object's offset, [B]; 0 without a scene graph.

    The target is interpolated linearly between the two nearest classes; frames are weighted by the object's
    visibility.
    """
    t, h, w = grid
    offset_B2S, seen_BT = logits_BSK.new_zeros(len(scenes), 2, t * h * w), logits_BSK.new_zeros(len(scenes), t)
    for i, scene in enumerate(scenes):
        if scene is not None:
            offset, seen = labels.offsets(scene, grid)
            offset_B2S[i], seen_BT[i] = torch.from_numpy(offset).flatten(1), torch.from_numpy(seen)
    at_B2S = offset_B2S.clamp(-FAR, FAR) + FAR
    low_B2S = at_B2S.floor().clamp(max=2 * FAR - 1)
    share_B2S = at_B2S - low_B2S
    log_probs_B2SK = logits_BSK.unflatten(-1, (2, -1)).transpose(1, 2).log_softmax(-1)
    nearest = [log_probs_B2SK.gather(-1, (low_B2S + i).long()[..., None])[..., 0] for i in (0, 1)]
    loss_BS = -((1 - share_B2S) * nearest[0] + share_B2S * nearest[1]).sum(1)
    return (loss_BS.unflatten(1, (t, -1)).mean(2) * seen_BT).mean(1)


def object_mask(scenes: Sequence[Scene | None], like_BCTHW: Tensor) -> Tensor:
    """A mask B×1×T×H×W: 1 on and just around the objects of each scene graph, 0 elsewhere and without one."""
    on = like_BCTHW.new_zeros(len(scenes), 1, *like_BCTHW.shape[2:])
    for own, scene in zip(on, scenes, strict=True):
        if scene is not None:
            own[0] = torch.from_numpy(labels.object_mask(scene, *like_BCTHW.shape[-2:]))
    return on
