"""Anchor the shared images (backdrop and sprite) to given pixels instead of generating them.

See docs/notes/0002, entry 11. Letters as in `model`; N is the sprite's side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kinema.families.zoetrope.warp import Pose, to_sprite

_MIN_MEMBERSHIP = 0.8
"""A given pixel is ignored if it or a neighbour belongs to the image by no more than this: a wrong pixel in a shared
image would appear in every frame."""
_MAX_DEVIATION = 0.05
"""Deviation between given frames, in pixel values of [-1, 1], above which content counts as moving."""
_FAINT, _CLEAR = 0.3, 0.6
"""Object visibilities: at the first or below, its colours cannot be separated from the background; at the second or
above they can."""
_MIN_GIVEN = 0.95
"""Share of the object that must be given in a frame for its colours to be used."""
_NEAR_BEST = 0.9
"""The first frame whose given area is at least this share of the largest one determines the object's colours."""


def anchor_to_given(image_BCHW: Tensor, membership_B1THW: Tensor, given_BCTHW: Tensor) -> Tensor:
    """Return the image with given pixels taken from the given frames, and the correction extrapolated elsewhere.

    ``membership`` is how far each given pixel belongs to the image, 0 to 1 (0 where nothing is given). Pixels that
    differ between given frames are ignored. The correction is extrapolated by a pyramid of means ("pull-push", Gortler
    et al. 1996, "The Lumigraph").
    """
    eroded_B1THW = -F.max_pool3d(-membership_B1THW.detach(), (1, 3, 3), 1, (0, 1, 1))  # an edge is a pixel wide
    weight_B1THW = ((eroded_B1THW - _MIN_MEMBERSHIP) / (1 - _MIN_MEMBERSHIP)).clamp(min=0)
    share_B1THW = weight_B1THW / weight_B1THW.sum(2, keepdim=True).clamp(min=1e-6)
    mean_BCHW = (share_B1THW * given_BCTHW).sum(2)
    variance_B1HW = (share_B1THW * (given_BCTHW - mean_BCHW[:, :, None]).square()).sum(2).mean(1, keepdim=True)
    weight_B1HW = weight_B1THW.amax(2) * _MAX_DEVIATION**2 / (_MAX_DEVIATION**2 + variance_B1HW)
    return image_BCHW + _pull_push(weight_B1HW * (mean_BCHW - image_BCHW), weight_B1HW)


def colours_from_given(
    colour_BCNN: Tensor,
    clip_BCTHW: Tensor,
    backdrop_BCTHW: Tensor,
    cover_B1THW: Tensor,
    mask_B1THW: Tensor,
    pose: Pose,
) -> Tensor:
    """Return the object's colours, taken from one given frame that contains the whole object (``cover``, 0 to 1).

    A partly given region may show a different object (inpainting), so it is ignored. Only one frame is used, the first
    with nearly the largest given area: poses of frames may differ by a symmetry of the outline, and averaging them
    would duplicate marks.
    """
    visible_BT = pose.visible_BT
    given_cover_B1THW = cover_B1THW * mask_B1THW
    area_BT, cover_area_BT = given_cover_B1THW.sum((1, 3, 4)), cover_B1THW.sum((1, 3, 4))
    clarity_BT = ((visible_BT - _FAINT) / (_CLEAR - _FAINT)).clamp(0, 1)
    area_BT = area_BT * (area_BT >= _MIN_GIVEN * cover_area_BT) * clarity_BT
    enough_BT = (area_BT >= _NEAR_BEST * area_BT.amax(1, keepdim=True)) & (area_BT > 0)
    chosen_BT = enough_BT & (enough_BT.cumsum(1) == 1)
    weight_B1THW = given_cover_B1THW * (chosen_BT * clarity_BT)[:, None, :, None, None]
    opacity_B1T11 = visible_BT.clamp(min=_FAINT)[:, None, :, None, None]
    unblended_BCTHW = (clip_BCTHW - backdrop_BCTHW) / opacity_B1T11 + backdrop_BCTHW
    warped = to_sprite(torch.cat([unblended_BCTHW, weight_B1THW], 1), pose, colour_BCNN.shape[-1])
    return anchor_to_given(colour_BCNN, warped[:, -1:], warped[:, :-1])


def _pull_push(value_BCHW: Tensor, weight_B1HW: Tensor) -> Tensor:
    """Fill in values that are premultiplied by their weight (0 to 1): the lower the weight, the more neighbours count.

    Far from any weighted value the result falls to 0.
    """
    factor = tuple(min(2, side) for side in value_BCHW.shape[-2:])
    if factor == (1, 1):
        return value_BCHW
    value, weight = (F.avg_pool2d(x, factor, ceil_mode=True) for x in (value_BCHW, weight_B1HW))
    gain = 1 / weight.clamp(min=0.25)  # one certain value out of four is enough
    coarse = F.interpolate(_pull_push(value * gain, weight * gain), scale_factor=factor, mode="bilinear")
    return value_BCHW + (1 - weight_B1HW) * coarse[..., : value_BCHW.shape[-2], : value_BCHW.shape[-1]]
