"""The identity codec of pixel-space models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from kinema.vae.latent_rgb import PIXELS, LatentRGB


@dataclass(frozen=True)
class PixelCodec:
    """Identity between pixels B×3×T×H×W in [-1, 1] and latents of the same shape."""

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        return video_BCTHW

    def decode(self, z_BCTHW: Tensor, chunk: int | None = None) -> Tensor:  # noqa: ARG002 (pixels need no chunks)
        return z_BCTHW

    def leaner(self, frames: int, height: int, width: int) -> Sequence[Mapping[str, int]]:  # noqa: ARG002
        """Return no options: nothing is decoded."""
        return ()

    def rgb(self, channels: int) -> LatentRGB:  # noqa: ARG002 (always 3)
        return PIXELS
