"""The codec: equality with diffusers on the same random weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kinema.families.svd import layers
from kinema.families.svd.config import TINY
from kinema.families.svd.decoder import SVDCodec
from kinema.vae import strips, tiling

THREE = replace(TINY, channels=(32, 64, 64), heads=(1, 2, 4), vae_channels=(32, 32, 64), vae_layers=2)
SIDE, FRAMES = 8, 5


@pytest.fixture
def z():
    return torch.randn(2 * FRAMES, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def test_the_encoder_equals_diffusers(pair):
    two = pair(THREE)
    image = torch.rand(5, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        result, expected = two.native.vae.encode(image), two.vae.encode(image).latent_dist.mode()
    assert expected.std() > 0.05
    assert (result - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("strip", [layers.STRIP, 3000])
@pytest.mark.parametrize("at_once", [tiling.MAX_ELEMENTS, 1])
@pytest.mark.parametrize("least", [strips.LEAST, 1])
def test_the_temporal_decoder_equals_diffusers(pair, z, strip, at_once, least, monkeypatch):
    """Also with several strips and image batches, as for large maps."""
    monkeypatch.setattr(layers, "STRIP", strip)
    monkeypatch.setattr(strips, "LEAST", least)
    monkeypatch.setattr(tiling, "MAX_ELEMENTS", at_once)
    taken, residual = [], strips.residual
    monkeypatch.setattr(strips, "residual", lambda *args: taken.append(args) or residual(*args))
    two = pair(THREE)
    with torch.no_grad():
        result, expected = two.native.vae.decode(z, FRAMES), two.vae.decode(z, num_frames=FRAMES).sample
    assert expected.std() > 0.05
    assert (result - expected).abs().max() <= 1e-5
    assert bool(taken) == (least == 1)


def test_norms_in_strips_stay_exact_under_autocast(monkeypatch):
    """Statistics of thousands of values in bfloat16 would be off by a tenth."""
    torch.manual_seed(0)
    x = (2 + 0.3 * torch.randn(1, 32, 4, 4096)).contiguous(memory_format=torch.channels_last)
    norm = torch.nn.GroupNorm(32, 32)
    parts = [x[..., at : at + 512] for at in range(0, 4096, 512)]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        result = layers.norm_silu(norm, parts)(x)
    with torch.no_grad():
        expected = torch.nn.functional.silu(norm.double()(x.double()))
    assert (result - expected).abs().max() <= 1e-4


def test_the_image_decoder_equals_diffusers(pair, z):
    two = pair(replace(THREE, decoder="image"))
    with torch.no_grad():
        result, expected = two.native.vae.decode(z, FRAMES), two.vae.decode(z).sample
    assert (result - expected).abs().max() <= 1e-5


def test_split_decoding_equals_decoding_with_gradients(pair, z):
    vae = pair(THREE).native.vae
    with torch.no_grad():
        quick = vae.decode(z, FRAMES)
    assert (vae.decode(z.requires_grad_(True), FRAMES) - quick).abs().max() <= 1e-5


def test_a_very_negative_mix_factor_decodes_frames_independently(pair, z):
    """The decoder's blend is reversed relative to the U-Net's."""
    vae = pair(THREE).native.vae
    with torch.no_grad():
        for name, p in vae.decoder.named_parameters():
            if name.endswith("mix_factor"):
                p.fill_(-1e4)
        vae.decoder.time_conv_out.weight.zero_()
        vae.decoder.time_conv_out.bias.zero_()
        vae.decoder.time_conv_out.weight[range(3), range(3), 1] = 1
        assert (vae.decode(z, FRAMES) - vae.decode(z, 1)).abs().max() <= 1e-5


def test_chunks_are_decoded_separately_for_each_clip(pair, z):
    codec = SVDCodec(pair(THREE).native.vae, THREE.latent_scale)
    z_BCTHW = z.unflatten(0, (2, FRAMES)).transpose(1, 2)
    with torch.no_grad():
        chunked = codec.decode(z_BCTHW, chunk=2)
        whole = codec.decode(z_BCTHW)
        parts = torch.cat([codec.decode(z_BCTHW[:, :, i : i + 2]) for i in range(0, FRAMES, 2)], dim=2)
        single = codec.decode(z_BCTHW[1:], chunk=2)
    assert torch.equal(chunked, parts)
    assert (chunked[1:] - single).abs().max() <= 1e-5
    assert (chunked - whole).abs().amax((0, 1, 3, 4)).min() > 1e-6  # norms span all frames, so each frame changes


def test_the_codec_encodes_clips_to_scaled_latents(pair):
    two = pair(THREE)
    codec = SVDCodec(two.native.vae, THREE.latent_scale)
    video = torch.rand(2, 3, FRAMES, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        z = codec.encode(video)
        one = two.vae.encode(video[1, :, 3][None]).latent_dist.mode() * 0.18215
    assert z.shape == (2, 4, FRAMES, 8, 8)
    assert (z[1, :, 3] - one[0]).abs().max() <= 1e-5


def seam(result, whole, at):
    """Relative error of the frame difference at the seam."""
    step, expected = ((x[:, :, at] - x[:, :, at - 1]) for x in (result, whole))
    return float((step - expected).abs().mean() / expected.abs().mean())


def test_overlapping_chunks_have_smaller_seams(pair):
    codec = SVDCodec(pair(THREE).native.vae, THREE.latent_scale)
    z = torch.randn(1, 4, 12, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    z = z[:, :, :1] + 0.3 * z  # frames of one scene
    with torch.no_grad():
        whole, met, shared = codec.decode(z), codec.decode(z, 6), codec.decode(z, 8, overlap=4)
    assert shared.shape == whole.shape
    worst = max(seam(shared, whole, at) for at in range(4, 9))
    assert worst < 0.7 * seam(met, whole, 6)
    assert (shared - whole).abs().mean() < (met - whole).abs().mean()


def test_tiles_are_cross_faded(pair):
    codec = SVDCodec(pair(THREE).native.vae, THREE.latent_scale)
    z = torch.randn(1, 4, 3, 16, 24, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole, result = codec.decode(z), codec.decode(z, tile=12)
        met = torch.cat([codec.decode(part) for part in z.split(12, dim=4)], dim=4)
    assert result.shape == whole.shape
    edge = 12 * 4
    jump = (met[..., edge] - met[..., edge - 1] - whole[..., edge] + whole[..., edge - 1]).abs().mean()
    faded = (result.diff(dim=4) - whole.diff(dim=4)).abs().mean((0, 1, 2, 3)).max()
    assert faded < 0.7 * jump


def test_every_leaner_option_decodes(pair):
    codec = SVDCodec(pair(THREE).native.vae, THREE.latent_scale)
    ways = codec.leaner(14, 72, 128)
    assert ways[0] == {"chunk": 8, "overlap": 2}
    assert {"chunk": 4, "overlap": 1, "tile": 16} == ways[-1]
    assert codec.leaner(4, 8, 8) == []
    z = torch.randn(1, 4, 9, 4, 20)
    with torch.no_grad():
        assert all(codec.decode(z, **way).shape == (1, 3, 9, 16, 80) for way in codec.leaner(9, 4, 20))
