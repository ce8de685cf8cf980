"""The causal codec over a few frames at a time: the same numbers, in less memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kinema.memory.rehearsal import Rehearsal
from kinema.vae import by_frames as parts
from kinema.vae.by_frames import scale_and_shift
from kinema.vae.causal3d import CausalAutoencoder


@pytest.fixture
def codec() -> CausalAutoencoder:
    torch.set_num_threads(1)
    torch.manual_seed(3)
    codec = CausalAutoencoder((32, 64, 64), layers=1, latent=4).eval().requires_grad_(False)
    for p in codec.parameters():
        p.copy_(torch.randn_like(p) * 0.1 + (p.ndim == 1) * 0.5)
    return codec


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("frames", [1, 2, 5, 13])
@pytest.mark.parametrize("part", [1, 2**13, 2**24], ids=["a frame", "some frames", "whole"])
def test_parts_of_any_size_give_the_numbers_of_the_whole(
    codec: CausalAutoencoder, frames: int, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART", part)
    video = torch.randn(2, 3, frames, 20, 28)
    with torch.enable_grad():  # there layers run whole
        latents = codec.encode(video)
        decoded = codec.decode(latents)
    with torch.no_grad():
        assert relative(codec.encode(video), latents) < 1e-5
        assert relative(codec.decode(latents), decoded) < 1e-5


def test_a_norm_far_from_zero_keeps_its_precision() -> None:
    norm = nn.GroupNorm(32, 64, 1e-6).requires_grad_(False)
    norm.weight.uniform_(0.5, 2)
    norm.bias.normal_()
    x = torch.randn(2, 64, 5, 7, 9) + 300 * torch.randn(2, 64, 1, 1, 1) ** 2
    scale, shift = scale_and_shift(norm, x)
    exact = norm.double()(x.double())
    assert float((torch.addcmul(shift, x, scale) - exact).abs().max()) < 2e-4


def test_decoding_holds_half_of_what_whole_layers_hold() -> None:
    with torch.device("meta"):
        codec = CausalAutoencoder().requires_grad_(False)
        z = torch.empty(1, 16, 9, 32, 32)
    rehearsal = Rehearsal({"": codec})
    with rehearsal.phase("parts"), torch.no_grad():
        codec.decode(z)
    with rehearsal.phase("whole"), torch.enable_grad():
        codec.decode(z)
    assert rehearsal.phases["parts"].peak < 0.5 * rehearsal.phases["whole"].peak
