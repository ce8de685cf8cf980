"""What every STDiT is called with, besides latents, time and text.

``network(z, time, text, text_mask, about=…, generated=…, given=…)`` is the same for the four versions; an input that a
version does not have is not looked at (`STDiTConfig.holds_frames` and `takes_given` tell).

Letters: B batch, C latent channels, T H W latent frames, rows and columns.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class About(NamedTuple):
    """What a network knows of its clips, which share a size. 1.0 uses nothing of it, 1.2 and 1.3 not the ratio."""

    fps_B: Tensor
    """Frames a second; `config.IMAGE_FPS` of a lone image."""
    height: int
    """Pixels, as is the width."""
    width: int

    def scale(self, side: int, dtype: torch.dtype) -> float:
        """The side of a square of this area, in units of ``side``; sizes are rounded as the original rounds them."""
        height, width = torch.tensor([self.height, self.width], dtype=dtype).tolist()
        return math.sqrt(height * width) / side


class Given(NamedTuple):
    """Latents of given frames (1.3). Without any, pass all False: the network was trained with that input."""

    latents_BCTHW: Tensor
    """Zero where nothing is given; all zero in the branch of guidance that does not see them."""
    frames_BT: Tensor
    """Boolean: which frames are given. Those attend to the null text instead of the prompt."""
