"""Colour matching between pieces of a clip that are generated one after another.

Each piece drifts slightly in brightness, contrast or saturation from its conditioning frames, and the next piece starts
from there, so errors accumulate. One gain and offset per clip and channel correct a piece (mean and standard deviation
transfer, Reinhard et al. 2001, here in RGB).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kinema.canvas import Canvas
from kinema.schema import BadRequest, Colours

MOST_GAIN = 2.0
"""Largest contrast correction; a larger difference is another image rather than drift."""
FLAT = 1e-3
"""Standard deviation below which an image has no contrast to match."""


def match_colours(video_BCTHW: Tensor, canvas: Canvas, how: Colours) -> Tensor:
    """Match the colours of ``video`` in [-1, 1] to ``canvas``, each clip separately.

    "seam": match new frames to adjacent given ones; unchanged if there are none. "anchor": match the
    whole video to the canvas's anchor, or its first given frame. "free": unchanged.
    """
    if how == "free":
        return video_BCTHW
    if how == "anchor":
        anchor_BCHW = canvas.first if canvas.block.anchor is None else canvas.block.anchor
        if anchor_BCHW is None:
            raise BadRequest("--colours anchor needs a given whole frame; use --colours seam")
        current, target = video_BCTHW, anchor_BCHW[:, :, None]
    elif how == "seam":
        # Measured on new frames only: a model need not reproduce the given ones.
        given, new = _neighbours(canvas.mask)
        if not given:
            return video_BCTHW
        current, target = video_BCTHW[:, :, new], canvas.video[:, :, given]
    else:
        raise BadRequest(f"colours is {how!r}; expected free, seam or anchor")
    (mean, std), (target_mean, target_std) = _moments(current), _moments(target)
    gain = (target_std / std.clamp_min(FLAT)).clamp(1 / MOST_GAIN, MOST_GAIN)
    gain = torch.where((std < FLAT) | (target_std < FLAT), 1.0, gain)
    return ((video_BCTHW - mean) * gain + target_mean).clamp(-1, 1)


def _neighbours(mask_B1THW: Tensor) -> tuple[list[int], list[int]]:
    """Pairs of whole given frames and adjacent new frames."""
    whole = (mask_B1THW.flatten(3).amin(-1).amin(0)[0] > 0).tolist()
    pairs = [
        (g, n) for g in range(len(whole)) for n in (g - 1, g + 1) if whole[g] and 0 <= n < len(whole) and not whole[n]
    ]
    return [g for g, _ in pairs], [n for _, n in pairs]


def _moments(video_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per clip and channel, B×C×1×1×1."""
    variance, mean = torch.var_mean(video_BCTHW, dim=(2, 3, 4), correction=0, keepdim=True)
    return mean, variance.sqrt()
