"""The image model alone: Stable Diffusion's U-Nets, VAE and text encoders against diffusers and transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kinema.conditioning.clip_text import ClipText
from kinema.families.animatediff.config import IMAGE, SDXL_IMAGE
from kinema.families.animatediff.unet import UNet
from kinema.vae.kl2d import Autoencoder, ImageCodec


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("side", [(8, 8), (12, 16)])
def test_sd15_unet_equals_diffusers(oracle, side):
    config = replace(oracle.middle, motion="none")
    network = oracle.randomised(UNet(config))
    reference = oracle.same_weights(oracle.image_unet(config), network)
    z, step, context = normal(2, 4, *side), torch.tensor([981.0, 20.0]), normal(2, 7, config.context)
    result = network(z[:, :, None], step, context)[:, :, 0]
    assert (result - reference(z, step, context).sample).abs().max() <= 1e-5


def test_sdxl_unet_equals_diffusers(oracle):
    config = replace(oracle.tiny_xl, motion="none")
    network = oracle.randomised(UNet(config))
    reference = oracle.same_weights(oracle.image_unet(config), network)
    z, step, context = normal(2, 4, 8, 8), torch.tensor([981.0, 20.0]), normal(2, 7, config.context)
    pooled, ids = normal(2, 24), torch.tensor([[16.0, 24, 0, 8, 16, 24], [64, 64, 0, 0, 64, 64]])
    from kinema.nn.embeddings import sinusoidal

    added = torch.cat([pooled, sinusoidal(ids, config.size_embedding).flatten(1)], dim=1)
    result = network(z[:, :, None], step, context, added)[:, :, 0]
    conditions = {"text_embeds": pooled, "time_ids": ids}
    assert (result - reference(z, step, context, added_cond_kwargs=conditions).sample).abs().max() <= 1e-5


def test_vae_equals_diffusers_both_ways(oracle):
    config = replace(oracle.middle, vae_channels=(32, 32, 64))
    network = oracle.randomised(Autoencoder(config.vae_channels, config.vae_layers, config.latent_channels))
    reference = oracle.same_weights(oracle.vae(config), network)
    video, codec = normal(2, 3, 3, 16, 24).clamp(-1, 1), ImageCodec(network, config.latent_scale)
    frames = video.transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        z = codec.encode(video)
        mode = reference.encode(frames).latent_dist.mode() * config.latent_scale
        assert (z.transpose(1, 2).flatten(0, 1) - mode).abs().max() <= 1e-4
        decoded = reference.decode(mode / config.latent_scale).sample
        assert (codec.decode(z).transpose(1, 2).flatten(0, 1) - decoded).abs().max() <= 1e-4


def test_networks_have_exactly_the_published_tensors():
    with torch.device("meta"):
        sd15, sdxl, vae = UNet(IMAGE), UNet(SDXL_IMAGE), Autoencoder((128, 256, 512, 512), 2, 4)
        texts = [ClipText(size) for size in SDXL_IMAGE.text]
    counts = [(len(m.state_dict()), sum(p.numel() for p in m.parameters())) for m in (sd15, sdxl, vae, *texts)]
    assert counts == [
        (686, 859_520_964),
        (1680, 2_567_463_684),
        (248, 83_653_863),
        (196, 123_060_480),
        (517, 694_659_840),
    ]
