"""Colours held together where a clip is made piece by piece.

Every piece comes out a little lighter, darker or paler than what it was given, and the next one begins there, so that
errors add up. One gain and one offset per clip and channel take a piece back (the transfer of mean and standard
deviation of Reinhard et al. 2001, here in RGB).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kinema.schema import BadRequest, Canvas, Colours

MOST_GAIN = 2.0
"""A contrast that differs by more is another picture, not a drifted one."""
FLAT = 1e-3
"""Standard deviation under which a picture has no contrast to compare."""


def match_colours(made_BCTHW: Tensor, canvas: Canvas, how: Colours) -> Tensor:
    """``made`` in [-1, 1] for this canvas with its colours brought back, each clip by itself.

    "seam": by how the given pixels came out against what they are; as it is where nothing was given. "anchor": the
    whole of it to the mean and contrast of the canvas's anchor, or of its first given frame. "free": as it is.
    """
    if how == "free":
        return made_BCTHW
    if how == "anchor":
        anchor_BCHW = canvas.first if canvas.anchor is None else canvas.anchor
        if anchor_BCHW is None:
            raise BadRequest("colours are to follow an anchor and no whole frame is given; use colours=seam")
        every = torch.ones_like(made_BCTHW[:, :1])
        came, wanted = _moments(made_BCTHW, every), _moments(anchor_BCHW[:, :, None], every[:, :, :1])
    elif how == "seam":
        came, wanted = _moments(made_BCTHW, canvas.mask), _moments(canvas.video, canvas.mask)
    else:
        raise BadRequest(f"colours are {how!r}; expected free, seam or anchor")
    (mean, std), (mean_wanted, std_wanted) = came, wanted
    gain = (std_wanted / std.clamp_min(FLAT)).clamp(1 / MOST_GAIN, MOST_GAIN)
    gain = torch.where((std < FLAT) | (std_wanted < FLAT), 1.0, gain)
    return ((made_BCTHW - mean) * gain + mean_wanted).clamp(-1, 1)


def _moments(video_BCTHW: Tensor, mask_B1THW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each clip and channel where the mask is 1, B×C×1×1×1; zeros for an empty mask."""
    weight = mask_B1THW / mask_B1THW.flatten(1).sum(1).clamp_min(1)[:, None, None, None, None]
    mean = (video_BCTHW * weight).sum((2, 3, 4), keepdim=True)
    variance = ((video_BCTHW - mean).square() * weight).sum((2, 3, 4), keepdim=True)
    return mean, variance.sqrt()
