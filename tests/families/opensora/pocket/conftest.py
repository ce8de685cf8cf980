"""A pocket model small enough for tests."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kinema.families.opensora.config import Config, PocketCodecConfig
from kinema.families.opensora.mmdit import MMDiTConfig
from kinema.families.opensora.pocket.codec import PocketCodec
from kinema.families.opensora.pocket.model import PocketOpenSora
from kinema.families.opensora.pocket.presets import POCKET

SMALL = replace(
    POCKET,
    frames=9,
    height=32,
    width=48,
    transformer=MMDiTConfig(
        channels=6, patch=1, text=32, vector=32, width=48, heads=3, mlp=2.0, double_blocks=1, single_blocks=2,
        axes=(4, 6, 6),
    ),
    pocket=PocketCodecConfig(latent=6, channels=(16, 24, 32), encoding=(1, 1, 1), decoding=(1, 1, 1)),
)  # fmt: skip


def with_random_weights(codec: PocketCodec) -> PocketCodec:
    """Convolutions that start at zero hide what they do."""
    with torch.no_grad():
        for parameter in codec.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.1)
    codec.mean.normal_()
    codec.variance.uniform_(0.5, 2)
    return codec


@pytest.fixture
def small() -> Config:
    return SMALL


@pytest.fixture
def model() -> PocketOpenSora:
    torch.manual_seed(0)
    network = PocketOpenSora(SMALL)
    assert isinstance(network.vae, PocketCodec)
    with_random_weights(network.vae)
    return network


@pytest.fixture
def codec(model: PocketOpenSora) -> PocketCodec:
    assert isinstance(model.vae, PocketCodec)
    return model.vae
