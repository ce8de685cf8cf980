"""What is given is taken, not drawn anew: the pictures that are drawn once for all frames, as given pixels show them.

See docs/decisions/0002, point 11. Letters as in `model`; N the side of the object's picture.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kinema.families.zoetrope.warp import Pose, lifted

_CLEAR = 0.8
"""A given pixel tells nothing where it, or one beside it, is the picture's by no more than this: what is burnt into a
picture by mistake stays in every frame."""
_APART = 0.05
"""Pixel values of [-1, 1] by which given frames differ in what does not stand still."""
_VEILED, _PLAIN = 0.3, 0.6
"""Visible by the first or less, an object's colours cannot be told from the ground; by the second or more they can."""
_WHOLE = 0.95
"""Share of the object that a frame must give."""
_AS_SURE = 0.9
"""Of the surest frame: the first one as sure tells the object's colours."""


def anchored(picture_BCHW: Tensor, own_B1THW: Tensor, given_BCTHW: Tensor) -> Tensor:
    """The picture as given frames show it, and off by what it is off by about there where they do not.

    ``own`` is how far each given pixel is the picture's, 0 to 1 (0 where nothing is given). Where given frames differ,
    they tell nothing. The rest is filled in by a pyramid of means ("pull-push", Gortler et al. 1996, "The Lumigraph").
    """
    least_B1THW = -F.max_pool3d(-own_B1THW.detach(), (1, 3, 3), 1, (0, 1, 1))  # an edge is a pixel wide
    sure_B1THW = ((least_B1THW - _CLEAR) / (1 - _CLEAR)).clamp(min=0)
    share_B1THW = sure_B1THW / sure_B1THW.sum(2, keepdim=True).clamp(min=1e-6)
    mean_BCHW = (share_B1THW * given_BCTHW).sum(2)
    apart_B1HW = (share_B1THW * (given_BCTHW - mean_BCHW[:, :, None]).square()).sum(2).mean(1, keepdim=True)
    sure_B1HW = sure_B1THW.amax(2) * _APART**2 / (_APART**2 + apart_B1HW)
    return picture_BCHW + _spread(sure_B1HW * (mean_BCHW - picture_BCHW), sure_B1HW)


def as_given(
    colour_BCNN: Tensor,
    drawn_BCTHW: Tensor,
    still_BCTHW: Tensor,
    shown_B1THW: Tensor,
    mask_B1THW: Tensor,
    pose: Pose,
) -> Tensor:
    """The object's colours as a frame shows them in which all of what is ``shown`` of it, 0 to 1, is given.

    What is given in part may be another thing, beside which this one is drawn (inpainting).
    One frame, the first that shows as much as any: marks at two places are worse than at one that is off, and where an
    outline is the same after part of a turn, poses may differ by that.
    """
    visible_BT = pose.visible_BT
    given_B1THW = shown_B1THW * mask_B1THW
    told_BT, all_BT = given_B1THW.sum((1, 3, 4)), shown_B1THW.sum((1, 3, 4))
    told_BT = told_BT * (told_BT >= _WHOLE * all_BT) * ((visible_BT - _VEILED) / (_PLAIN - _VEILED)).clamp(0, 1)
    enough_BT = (told_BT >= _AS_SURE * told_BT.amax(1, keepdim=True)) & (told_BT > 0)
    first_BT = enough_BT & (enough_BT.cumsum(1) == 1)
    plain_BT = first_BT * ((visible_BT - _VEILED) / (_PLAIN - _VEILED)).clamp(0, 1)
    own_BCTHW = (drawn_BCTHW - still_BCTHW) / visible_BT.clamp(min=_VEILED)[:, None, :, None, None] + still_BCTHW
    seen = lifted(
        torch.cat([own_BCTHW, given_B1THW * plain_BT[:, None, :, None, None]], 1), pose, colour_BCNN.shape[-1]
    )
    return anchored(colour_BCNN, seen[:, -1:], seen[:, :-1])


def _spread(value_BCHW: Tensor, sure_B1HW: Tensor) -> Tensor:
    """Values times how sure they are (0 to 1), filled in: as far as one is not sure, by those about it.

    Far from all that is sure they fall to 0.
    """
    halved = tuple(min(2, side) for side in value_BCHW.shape[-2:])
    if halved == (1, 1):
        return value_BCHW
    value, sure = (F.avg_pool2d(x, halved, ceil_mode=True) for x in (value_BCHW, sure_B1HW))
    gain = 1 / sure.clamp(min=0.25)  # one sure place of four makes them sure
    about = F.interpolate(_spread(value * gain, sure * gain), scale_factor=halved, mode="bilinear")
    return value_BCHW + (1 - sure_B1HW) * about[..., : value_BCHW.shape[-2], : value_BCHW.shape[-1]]
