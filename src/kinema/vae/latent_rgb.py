"""Linear maps from latents to colours, for previews without a decoder.

The published maps were fitted by users of Stable Diffusion; they map latents of about unit variance to [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Row = tuple[float, float, float]


@dataclass(frozen=True)
class LatentRGB:
    """``colour = factors · latent + bias`` in [-1, 1], with a row of RGB factors for each latent channel."""

    factors: tuple[Row, ...]
    bias: Row = (0.0, 0.0, 0.0)

    def __call__(self, z_CTHW: Tensor) -> Tensor:
        """Return float32 colours 3×T×h×w of latents C×T×h×w."""
        factors_C3, bias_3 = torch.tensor(self.factors).to(z_CTHW.device), torch.tensor(self.bias).to(z_CTHW.device)
        return torch.einsum("cthw,cr->rthw", z_CTHW.float(), factors_C3) + bias_3[:, None, None, None]


PIXELS = LatentRGB(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
"""The identity, for pixel-space models."""

SD1 = LatentRGB(
    ((0.3444, 0.1385, 0.0670), (0.1247, 0.4027, 0.1494), (-0.3192, 0.2513, 0.2103), (-0.1307, -0.1874, -0.7445))
)
"""Stable Diffusion 1.x and SVD, which share an encoder. By torridgristle, after keturn and erucipe
(discuss.huggingface.co/t/23204); as in InvokeAI's ``step_callback.py``."""

SDXL = LatentRGB(
    ((0.3816, 0.4930, 0.5320), (-0.3753, 0.1631, 0.1739), (0.1770, 0.3588, -0.2048), (-0.4350, -0.2644, -0.4289))
)
"""By StAlKeR7779; as in InvokeAI's ``step_callback.py``, without its smoothing."""

_PUBLISHED = {0.18215: SD1, 0.13025: SDXL}


def published(channels: int, stride: int, scale: float) -> LatentRGB | None:
    """Return the published map for an image autoencoder, identified by its scaling factor; None for others."""
    return _PUBLISHED.get(scale) if (channels, stride) == (4, 8) else None
