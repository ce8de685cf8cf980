from __future__ import annotations

import pytest
import torch

from kinema import registry
from kinema.vae.kl2d import ImageCodec
from kinema.vae.latent_rgb import PIXELS, SD1, SDXL, LatentRGB, published


def test_a_map_is_a_weighted_sum_of_channels_plus_a_bias() -> None:
    rgb = LatentRGB(((1.0, 2.0, 3.0), (10.0, 20.0, 30.0)), (0.1, 0.2, 0.3))
    z = torch.tensor([1.0, -2.0])[:, None, None, None].expand(2, 1, 1, 2)
    assert torch.allclose(rgb(z)[:, 0, 0, 1], torch.tensor([-18.9, -37.8, -56.7]))
    assert torch.equal(PIXELS(torch.eye(3)[:, :, None, None]), torch.eye(3)[:, :, None, None])


@pytest.mark.parametrize(
    ("channels", "stride", "scale", "rgb"),
    [(4, 8, 0.18215, SD1), (4, 8, 0.13025, SDXL), (4, 8, 0.5, None), (16, 8, 0.18215, None), (4, 4, 0.18215, None)],
)
def test_published_maps_apply_only_to_published_latents(
    channels: int, stride: int, scale: float, rgb: LatentRGB | None
) -> None:
    assert published(channels, stride, scale) is rgb


def test_the_published_models_have_the_published_maps() -> None:
    class Coder:
        stride = 8

    for family, preset, rgb in (("animatediff", "v3", SD1), ("animatediff", "sdxl", SDXL), ("svd", "svd-xt", SD1)):
        config = registry.family(family).presets[preset]
        codec = ImageCodec(Coder(), config.latent_scale)  # type: ignore[arg-type]
        assert config.stride == Coder.stride
        assert codec.rgb(config.latent_channels) is rgb
