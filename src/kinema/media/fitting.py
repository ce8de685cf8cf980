"""Resize frames to another aspect ratio by cropping or padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kinema.schema import BadRequest, Fit

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Fitting:
    """Crop centrally to ``cropped``, scale to ``scaled``, pad centrally to ``target``; each (height, width)."""

    source: tuple[int, int]
    cropped: tuple[int, int]
    scaled: tuple[int, int]
    target: tuple[int, int]

    @property
    def note(self) -> str | None:
        """One sentence that describes the change; None if there is none."""
        if self.source == self.target:
            return None
        crop = "" if self.cropped == self.source else f"cropped to {_by(self.cropped)} and "
        bars = "" if self.scaled == self.target else f" and padded with black to {_by(self.target)}"
        return f"{_by(self.source)} was {crop}resized to {_by(self.scaled)}{bars}"


def plan(new: tuple[int, int], old: Sequence[int], how: Fit) -> Fitting:
    """How to fit a frame of (height, width) ``old`` to ``new``: "crop" cuts the excess, "pad" adds bars."""
    (old_height, old_width), (height, width) = old, new
    if how not in ("crop", "pad"):
        raise BadRequest(f"fit is {how!r}; expected crop or pad")
    source = (old_height, old_width)
    if min(*source, *new) < 1:
        raise BadRequest(f"cannot resize {_by(source)} to {_by(new)}; expected sides of at least 1 pixel")
    if how == "crop":
        # Crop first, in source pixels, so that no pixel is resized and then discarded.
        crop_h = min(old_height, max(1, round(old_width * height / width)))
        crop_w = min(old_width, max(1, round(old_height * width / height)))
        return Fitting(source, (crop_h, crop_w), new, new)
    scale = min(height / old_height, width / old_width)
    scaled_h = max(1, min(height, round(old_height * scale)))
    scaled_w = max(1, min(width, round(old_width * scale)))
    return Fitting(source, source, (scaled_h, scaled_w), new)


def fit_note(height: int, width: int, old_height: int, old_width: int, how: Fit = "crop") -> str | None:
    """Return `fit`'s note for a video of old_height×old_width resized to height×width, or None."""
    return plan((height, width), (old_height, old_width), how).note


def fit(video_BCTHW: Tensor, height: int, width: int, how: Fit = "crop") -> tuple[Tensor, str | None]:
    """Resize a video to height×width at its own aspect ratio; also returns a note on what was done, or None.

    "crop" cuts the excess evenly from both sides, "pad" adds black bars; resizing is antialiased
    bicubic. A video that already has the size is returned unchanged.
    """
    fitting = plan((height, width), video_BCTHW.shape[-2:], how)
    if fitting.note is None:
        return video_BCTHW, None
    fitted = video_BCTHW.new_full((*video_BCTHW.shape[:-2], height, width), -1.0)
    inside, cut = _middle(fitted, fitting.scaled), _middle(video_BCTHW, fitting.cropped)
    for b in range(cut.shape[0]):
        for t in range(cut.shape[2]):  # frame by frame: a second float copy of a long clip may not fit in memory
            inside[b, :, t] = _resized(cut[b, :, t].float(), fitting.scaled).clamp_(-1, 1)
    return fitted, fitting.note


def fit_frame(frame_HWC: np.ndarray, height: int, width: int, how: Fit = "crop") -> np.ndarray:
    """`fit` for one uint8 H×W×3 frame, rounded to whole levels."""
    fitting = plan((height, width), frame_HWC.shape[:2], how)
    if fitting.note is None:
        return frame_HWC
    import torch

    fitted_CHW = torch.zeros(3, height, width, dtype=torch.uint8)
    frame_CHW = torch.from_numpy(np.require(frame_HWC, requirements=("C", "W"))).permute(2, 0, 1)
    cut_CHW = _middle(frame_CHW, fitting.cropped)
    _middle(fitted_CHW, fitting.scaled).copy_(scaled(cut_CHW, fitting.scaled))
    return fitted_CHW.permute(1, 2, 0).contiguous().numpy()


def scaled(frame_CHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a uint8 frame to (height, width), antialiased bicubic, rounded to whole levels."""
    if frame_CHW.shape[-2:] == size:
        return frame_CHW.contiguous()
    return _resized(frame_CHW.float(), size).round_().clamp_(0, 255).byte()


def _resized(frame_CHW: Tensor, size: tuple[int, int]) -> Tensor:
    if frame_CHW.shape[-2:] == size:
        return frame_CHW
    from torch.nn import functional

    return functional.interpolate(frame_CHW[None], size, mode="bicubic", antialias=True)[0]


def _middle(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """View the centre of the last two axes."""
    top, left = (pixels.shape[-2] - size[0]) // 2, (pixels.shape[-1] - size[1]) // 2
    return pixels[..., top : top + size[0], left : left + size[1]]


def _by(size: tuple[int, int]) -> str:
    return f"{size[1]}×{size[0]}"
