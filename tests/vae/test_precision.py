"""Codecs with float16 weights whose activations overflow float16 run in float32."""

from __future__ import annotations

import pytest
import torch

from kinema import registry
from kinema.families.svd import conditioning
from kinema.families.svd.config import TINY
from kinema.memory.offload import WeightOffloader
from kinema.system import WeightPolicy
from kinema.vae.kl2d import Autoencoder, ImageCodec
from kinema.vae.precision import upcast

HALF = torch.float16


@pytest.fixture
def vae():
    """A float16 codec whose activations overflow, and a float32 one with the same weights."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    half, whole = Autoencoder((32, 32), 1, 4), Autoencoder((32, 32), 1, 4)
    with torch.no_grad():
        for part in (half.encoder, half.decoder):
            part.conv_in.weight.mul_(1e4)
            part.conv_in.bias.fill_(6e4)
            part.mid_block.resnets[1].conv2.bias.fill_(6e4)
    half.half().eval().requires_grad_(False)
    whole.load_state_dict({name: x.float() for name, x in half.state_dict().items()})
    return half, whole.eval().requires_grad_(False)


def test_a_wide_codec_equals_float32_and_keeps_its_float16_weights(vae):
    half, whole = vae
    video, z = torch.rand(1, 3, 2, 16, 16) * 2 - 1, torch.randn(1, 4, 2, 4, 4)
    before = {name: x.clone() for name, x in half.state_dict().items()}
    wide, plain, exact = ImageCodec(half, 0.1, wide=True), ImageCodec(half, 0.1), ImageCodec(whole, 0.1)
    video, z = video.half(), z.half()
    assert not plain.decode(z).isfinite().all()  # it overflows
    assert torch.equal(wide.encode(video), exact.encode(video.float()))
    assert torch.equal(wide.decode(z), exact.decode(z.float()))
    assert wide.decode(z).isfinite().all()
    for name, x in half.state_dict().items():
        assert x.dtype == HALF
        assert torch.equal(x, before[name])


def test_offloaded_weights_are_cast_to_float32_too(vae):
    half, whole = vae
    rest = {name: p.detach().clone() for name, p in half.named_parameters()}
    holder = torch.nn.ModuleDict({"vae": half})
    WeightOffloader(
        holder, [], lambda name: rest[name.removeprefix("vae.")], torch.device("cpu"), WeightPolicy(HALF, HALF)
    ).begin("model")
    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(upcast(half, half.encode, image), whole.encode(image))
    assert {p.dtype for p in half.parameters()} == {HALF}


def test_float16_weights_are_restored_after_an_error(vae):
    half, _ = vae
    with pytest.raises(RuntimeError):
        upcast(half, half.encode, torch.rand(1, 5, 16, 16))
    assert {p.dtype for p in half.parameters()} == {HALF}


def test_svd_noises_and_encodes_the_image_in_float32():
    torch.manual_seed(0)
    family = registry.family("svd")
    half = family.build(TINY).half().eval().requires_grad_(False)
    whole = family.build(TINY).eval().requires_grad_(False)
    whole.load_state_dict({name: x.float() for name, x in half.state_dict().items()})
    picture, noise = torch.rand(1, 3, 16, 16) * 2 - 1, torch.randn(1, 3, 16, 16)
    told = conditioning.encode(half, picture, noise, torch.zeros(1, 1, 3), torch.tensor([0.02]))
    assert torch.equal(told.image_BCTHW[:, :, 0], whole.vae.encode(picture + 0.02 * noise))
    video = picture[:, :, None].half()
    exact = family.sampling.codec(TINY, whole).encode(video.float())
    assert torch.equal(family.sampling.codec(TINY, half).encode(video), exact)


def test_the_codec_is_wide_for_sdxl_but_not_for_sd15():
    family = registry.family("animatediff")
    for preset, wide in (("sdxl", True), ("v3", False)):
        config = family.presets[preset]
        with torch.device("meta"):
            assert family.sampling.codec(config, family.build(config)).wide is wide
