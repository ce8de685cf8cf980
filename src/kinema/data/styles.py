"""Styles of playroom clips, each a fixed function of a frame's pixels, and a statistic that detects each.

``outline``: coloured chalk on a dark board, with a line where colours change. ``night``: dark and blue, with glowing
vivid and white objects. Objects keep their position, outline and colour, so the oracle can judge such clips.

Letters: C channels, T frames, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from kinema.schema import BadRequest

BOARD = (0.06, 0.07, 0.08)
FAINT, FULL = 0.22, 0.45
"""Colour differences across two pixels (in the opponent space of `lines`) where a line starts and is opaque."""
DARK = (0.24, 0.30, 0.42)
"""Factors of red, green and blue at night."""
GLOOM = (0.0, 0.02, 0.14)


def apply(style: str, video_CTHW: Tensor) -> Tensor:
    """Render a clip 3×T×H×W in [-1, 1] in a style ("" for none). Raises BadRequest for an unknown style."""
    if not style:
        return video_CTHW
    if style not in STYLES:
        raise BadRequest(f"unknown style {style!r}; expected one of {', '.join(STYLES)}")
    return STYLES[style][0]((video_CTHW + 1) / 2) * 2 - 1


def share(style: str, video_CTHW: Tensor) -> float:
    """The style statistic: the share of background pixels (board or night) of the style, 0 to 1."""
    return float(STYLES[style][1](((video_CTHW + 1) / 2).clamp(0, 1)).float().mean())


def lines(pixels_CTHW: Tensor) -> Tensor:
    """The opacity of outlines at each pixel, [T, H, W] in 0..1, from pixels in 0..1: a scribble."""
    grey = pixels_CTHW.mean(0, keepdim=True)
    opponent = (0.8 * grey + 1.7 * (pixels_CTHW - grey)).transpose(0, 1)
    around = F.pad(opponent, (1, 1, 1, 1), mode="replicate")
    across = around[:, :, 1:-1, 2:] - around[:, :, 1:-1, :-2]
    down = around[:, :, 2:, 1:-1] - around[:, :, :-2, 1:-1]
    change_THW = (across.square() + down.square()).sum(1).sqrt()
    return ((change_THW - FAINT) / (FULL - FAINT)).clamp(0, 1)


def _outline(pixels_CTHW: Tensor) -> Tensor:
    ink_THW = lines(pixels_CTHW)
    board = _colour(BOARD, pixels_CTHW)
    return board + ink_THW * (_chalk(pixels_CTHW) - board)


def _chalk(pixels_CTHW: Tensor) -> Tensor:
    """The most vivid colour in the 3×3 neighbourhood of each pixel, brightened."""
    frames, height, width = pixels_CTHW.shape[1:]
    around = F.pad(pixels_CTHW.transpose(0, 1), (1, 1, 1, 1), mode="replicate")
    near_TC9HW = F.unfold(around, 3).view(frames, 3, 9, height, width)
    high, low = near_TC9HW.amax(1), near_TC9HW.amin(1)
    best = (high - low + 0.5 * high).argmax(1)
    chosen = near_TC9HW.gather(2, best[:, None, None].expand(-1, 3, -1, -1, -1))[:, :, 0]
    return (0.95 * chosen / chosen.amax(1, keepdim=True).clamp_min(0.3)).transpose(0, 1)


def _night(pixels_CTHW: Tensor) -> Tensor:
    chroma = pixels_CTHW.amax(0) - pixels_CTHW.amin(0)
    vivid, white = (chroma - 0.3) / 0.25, (pixels_CTHW.amin(0) - 0.84) / 0.08
    glow_THW = torch.maximum(vivid, white).clamp(0, 1)
    dark = _colour(DARK, pixels_CTHW) * pixels_CTHW + _colour(GLOOM, pixels_CTHW)
    return dark + glow_THW * (pixels_CTHW - dark)


def _is_board(pixels_CTHW: Tensor) -> Tensor:
    return pixels_CTHW.amax(0) < 0.2


def _is_night(pixels_CTHW: Tensor) -> Tensor:
    red, _, blue = pixels_CTHW
    return (pixels_CTHW.amax(0) < 0.6) & (blue - red > 0.06) & (red < 0.3)


def _colour(rgb: tuple[float, float, float], like: Tensor) -> Tensor:
    return like.new_tensor(rgb)[:, None, None, None]


STYLES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "outline": (_outline, _is_board),
    "night": (_night, _is_night),
}
"""Style name to its renderer and its background mask, both of pixels in 0..1."""
