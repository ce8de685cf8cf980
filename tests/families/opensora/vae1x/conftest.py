"""The codecs of Open-Sora 1.2 and 1.3 in the sizes and with the weights that they were recorded with."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
from torch import nn

from kinema.families.opensora.vae1x.vae12 import Sizes12, VideoVAE12
from kinema.families.opensora.vae1x.vae13 import Sizes13, VideoVAE13

NORMALISED = ((-0.3, 0.4, 0.9), (3.5, 2.25, 0.75))
SIZES_12 = Sizes12(
    latent=3,
    image_channels=(32, 64),
    image_layers=1,
    widths=(32, 64, 32, 96),
    layers=1,
    shift=NORMALISED[0],
    scale=NORMALISED[1],
)
SIZES_13 = Sizes13(latent=3, widths=(32, 64, 32, 96), layers=1, mean=NORMALISED[0], std=NORMALISED[1])


@pytest.fixture(scope="session")
def vae12(fill: Callable[..., nn.Module]) -> VideoVAE12:
    return cast(VideoVAE12, fill(VideoVAE12(SIZES_12), 21).requires_grad_(False))


@pytest.fixture(scope="session")
def vae13(fill: Callable[..., nn.Module]) -> VideoVAE13:
    return cast(VideoVAE13, fill(VideoVAE13(SIZES_13), 22).requires_grad_(False))
