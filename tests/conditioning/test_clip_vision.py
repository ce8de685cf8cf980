"""The image encoder against transformers, and its preprocessing against diffusers."""

from __future__ import annotations

import pytest
import torch

from kinema.conditioning.clip_vision import ClipVision, resize

SIZES = {"width": 32, "layers": 2, "heads": 2, "mlp": 64, "patch": 8, "side": 32, "projection": 24}


def test_it_equals_transformers_and_shares_its_weight_names():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    network = ClipVision(**SIZES).eval()
    reference = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            projection_dim=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            hidden_act="gelu",
        )
    ).eval()
    reference.load_state_dict(network.state_dict())
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert (network(pixels) - reference(pixels).image_embeds).abs().max() <= 1e-6


@pytest.mark.parametrize("size", [(576, 1024), (64, 48), (31, 200), (224, 224)])
def test_images_are_resized_as_in_diffusers(size):
    pipeline = pytest.importorskip("diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion")
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = pipeline._resize_with_antialiasing(image, (224, 224))
    assert (resize(image, 224) - expected).abs().max() <= 2e-6


def test_an_image_of_any_size_is_embedded():
    torch.manual_seed(0)
    network = ClipVision(**SIZES).eval()
    with torch.no_grad():
        assert network.embed(torch.zeros(2, 3, 50, 70)).shape == (2, 24)
