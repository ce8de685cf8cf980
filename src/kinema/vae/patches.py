"""A codec without weights: squares of pixels as latent cells."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Patches(nn.Module):
    """Codec between images N×3×H×W and squares of ``side`` pixels, N×3·side²×h×w; replaces a VAE for `ImageCodec`."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.stride = side

    def encode(self, image_NCHW: Tensor) -> Tensor:
        return F.pixel_unshuffle(image_NCHW, self.stride)

    def decode(self, z_NCHW: Tensor) -> Tensor:
        return F.pixel_shuffle(z_NCHW, self.stride)
