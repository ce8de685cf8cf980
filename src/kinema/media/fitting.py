"""A picture of one shape brought to another, its aspect kept: where it is cut, how it is scaled, what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kinema.schema import BadRequest, Fit


@dataclass(frozen=True)
class Fitting:
    """Cut to ``kept`` in the middle, scaled to ``scaled``, put in the middle of ``whole``; each (height, width)."""

    source: tuple[int, int]
    kept: tuple[int, int]
    scaled: tuple[int, int]
    whole: tuple[int, int]

    @property
    def note(self) -> str | None:
        """What it does as a sentence; None where it does nothing."""
        if self.source == self.whole:
            return None
        cropped = "" if self.kept == self.source else f"cropped to {_by(self.kept)} and "
        bars = "" if self.scaled == self.whole else f" and padded with black to {_by(self.whole)}"
        return f"{_by(self.source)} was {cropped}resized to {_by(self.scaled)}{bars}"


def plan(new: tuple[int, int], old: Sequence[int], how: Fit) -> Fitting:
    """How a picture of ``old`` height and width gets ``new`` ones: "crop" cuts the overhang, "pad" adds bars."""
    (old_height, old_width), (height, width) = old, new
    if how not in ("crop", "pad"):
        raise BadRequest(f"fit is {how!r}; expected crop or pad")
    was = (old_height, old_width)
    if min(*was, *new) < 1:
        raise BadRequest(f"{_by(was)} cannot become {_by(new)}; expected sides of at least one pixel")
    if how == "crop":
        # Cutting first, in source pixels, means that no pixel is resized only to be thrown away.
        kept_h = min(old_height, max(1, round(old_width * height / width)))
        kept_w = min(old_width, max(1, round(old_height * width / height)))
        return Fitting(was, (kept_h, kept_w), new, new)
    scale = min(height / old_height, width / old_width)
    scaled_h = max(1, min(height, round(old_height * scale)))
    scaled_w = max(1, min(width, round(old_width * scale)))
    return Fitting(was, was, (scaled_h, scaled_w), new)


def fit_note(height: int, width: int, old_height: int, old_width: int, how: Fit = "crop") -> str | None:
    """The sentence that `fit` gives for a video of old_height×old_width brought to height×width, or None."""
    return plan((height, width), (old_height, old_width), how).note


def fit(video_BCTHW: Tensor, height: int, width: int, how: Fit = "crop") -> tuple[Tensor, str | None]:
    """Bring a video to height×width with its aspect kept; the second value says what was done, or None.

    "crop" cuts the overhang evenly from both sides, "pad" adds black bars; the resize is antialiased
    bicubic. A video that has the size already is returned untouched.
    """
    made = plan((height, width), video_BCTHW.shape[-2:], how)
    if made.note is None:
        return video_BCTHW, None
    fitted = video_BCTHW.new_full((*video_BCTHW.shape[:-2], height, width), -1.0)
    inside, cut = _middle(fitted, made.scaled), _middle(video_BCTHW, made.kept)
    for b in range(cut.shape[0]):
        for t in range(cut.shape[2]):  # frame by frame: a long clip must not be held twice in float
            inside[b, :, t] = _resized(cut[b, :, t].float(), made.scaled).clamp_(-1, 1)
    return fitted, made.note


def fit_frame(frame_HWC: np.ndarray, height: int, width: int, how: Fit = "crop") -> np.ndarray:
    """`fit` of one uint8 frame H×W×3, rounded to whole levels."""
    made = plan((height, width), frame_HWC.shape[:2], how)
    if made.note is None:
        return frame_HWC
    fitted_CHW = torch.zeros(3, height, width, dtype=torch.uint8)
    cut_CHW = _middle(torch.from_numpy(np.require(frame_HWC, requirements=("C", "W"))).permute(2, 0, 1), made.kept)
    _middle(fitted_CHW, made.scaled).copy_(scaled(cut_CHW, made.scaled))
    return fitted_CHW.permute(1, 2, 0).contiguous().numpy()


def scaled(frame_CHW: Tensor, size: tuple[int, int]) -> Tensor:
    """A uint8 frame at another (height, width), antialiased bicubic, in whole levels."""
    if frame_CHW.shape[-2:] == size:
        return frame_CHW.contiguous()
    return _resized(frame_CHW.float(), size).round_().clamp_(0, 255).to(torch.uint8)


def _resized(frame_CHW: Tensor, size: tuple[int, int]) -> Tensor:
    if frame_CHW.shape[-2:] == size:
        return frame_CHW
    return functional.interpolate(frame_CHW[None], size, mode="bicubic", antialias=True)[0]


def _middle(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """A view of the middle of the last two axes."""
    top, left = (pixels.shape[-2] - size[0]) // 2, (pixels.shape[-1] - size[1]) // 2
    return pixels[..., top : top + size[0], left : left + size[1]]


def _by(size: tuple[int, int]) -> str:
    return f"{size[1]}×{size[0]}"
