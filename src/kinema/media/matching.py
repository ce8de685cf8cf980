"""Colours held together where a clip is made piece by piece.

Every piece comes out a little lighter, darker or paler than what it was given, and the next one begins there, so that
errors add up. One gain and one offset per clip and channel take a piece back (the transfer of mean and standard
deviation of Reinhard et al. 2001, here in RGB).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kinema.canvas import Canvas
from kinema.schema import BadRequest, Colours

MOST_GAIN = 2.0
"""A contrast that differs by more is another picture, not a drifted one."""
FLAT = 1e-3
"""Standard deviation under which a picture has no contrast to compare."""


def match_colours(made_BCTHW: Tensor, canvas: Canvas, how: Colours) -> Tensor:
    """``made`` in [-1, 1] for this canvas with its colours brought back, each clip by itself.

    "seam": so that new frames beside given ones have their mean and contrast; as it is where there are none. "anchor":
    the whole of it to the mean and contrast of the canvas's anchor, or of its first given frame. "free": as it is.
    """
    if how == "free":
        return made_BCTHW
    if how == "anchor":
        anchor_BCHW = canvas.first if canvas.block.anchor is None else canvas.block.anchor
        if anchor_BCHW is None:
            raise BadRequest("colours are to follow an anchor and no whole frame is given; use colours=seam")
        came, wanted = made_BCTHW, anchor_BCHW[:, :, None]
    elif how == "seam":
        # Not by what came out where pixels were given: a model that is shown them need not repeat them.
        given, new = _neighbours(canvas.mask)
        if not given:
            return made_BCTHW
        came, wanted = made_BCTHW[:, :, new], canvas.video[:, :, given]
    else:
        raise BadRequest(f"colours are {how!r}; expected free, seam or anchor")
    (mean, std), (mean_wanted, std_wanted) = _moments(came), _moments(wanted)
    gain = (std_wanted / std.clamp_min(FLAT)).clamp(1 / MOST_GAIN, MOST_GAIN)
    gain = torch.where((std < FLAT) | (std_wanted < FLAT), 1.0, gain)
    return ((made_BCTHW - mean) * gain + mean_wanted).clamp(-1, 1)


def _neighbours(mask_B1THW: Tensor) -> tuple[list[int], list[int]]:
    """Whole given frames and the new frames beside them, pair by pair."""
    whole = (mask_B1THW.flatten(3).amin(-1).amin(0)[0] > 0).tolist()
    pairs = [
        (g, n) for g in range(len(whole)) for n in (g - 1, g + 1) if whole[g] and 0 <= n < len(whole) and not whole[n]
    ]
    return [g for g, _ in pairs], [n for _, n in pairs]


def _moments(video_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each clip and channel, B×C×1×1×1."""
    variance, mean = torch.var_mean(video_BCTHW, dim=(2, 3, 4), correction=0, keepdim=True)
    return mean, variance.sqrt()
