"""The pocket codec: its geometry, its causality, and the statistics of its latents."""

from __future__ import annotations

import pytest
import torch

from kinema.families.opensora.pocket.codec import ChannelNorm, PocketCodec, Temporal, folded, unfolded

TOLERANCE = 1e-5
"""Convolutions over fewer frames add in another order."""


def clip(frames: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 3, frames, 32, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(("frames", "latent"), [(1, 1), (5, 2), (9, 3), (17, 5)])
def test_four_k_plus_one_frames_become_k_plus_one(codec: PocketCodec, frames: int, latent: int) -> None:
    with torch.no_grad():
        z = codec.encode(clip(frames))
        assert z.shape == (2, 6, latent, 4, 6)
        assert codec.decode(z).shape == (2, 3, frames, 32, 48)


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_the_latents_of_a_beginning_are_the_beginning_of_the_latents(codec: PocketCodec, frames: int) -> None:
    video = clip(17)
    with torch.no_grad():
        whole, part = codec.encode(video), codec.encode(video[:, :, :frames])
        torch.testing.assert_close(part, whole[:, :, : part.shape[2]], rtol=0, atol=TOLERANCE)
        decoded = codec.decode(whole)
        torch.testing.assert_close(
            codec.decode(whole[:, :, : part.shape[2]]), decoded[:, :, :frames], rtol=0, atol=TOLERANCE
        )


def test_later_frames_matter_to_later_latents(codec: PocketCodec) -> None:
    video, other = clip(17), clip(17, 1)
    mixed = torch.cat([video[:, :, :9], other[:, :, 9:]], 2)
    with torch.no_grad():
        change = (codec.encode(mixed) - codec.encode(video)).abs().amax((0, 1, 3, 4))
    assert change[:3].max() < TOLERANCE
    assert change[3:].min() > 1e-2


def test_folding_and_unfolding_are_inverse_but_for_the_frames_before_the_first() -> None:
    x = torch.arange(2 * 3 * 8 * 4 * 6, dtype=torch.float32).reshape(2, 3, 8, 4, 6)
    assert torch.equal(unfolded(folded(x, 1, 2), 1, 2), x)
    assert torch.equal(unfolded(folded(x, 4, 2), 4, 2), x[:, :, 3:])
    assert folded(x, 4, 2)[0, :4, 1, 0, 1].tolist() == [x[0, 0, 4, i, j].item() for i in (0, 1) for j in (2, 3)]


def test_a_temporal_convolution_sees_its_own_frame_and_two_before() -> None:
    layer = Temporal(1, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([4.0, 2.0, 1.0]).reshape(1, 1, 3, 1, 1))
    x = torch.tensor([1.0, 10.0, 100.0]).reshape(1, 1, 3, 1, 1)
    assert layer(x).flatten().tolist() == [7.0, 16.0, 124.0]  # before the first frame are copies of it


def test_the_norm_of_a_place_is_one_and_depends_on_no_other() -> None:
    norm, x = ChannelNorm(5), torch.randn(2, 5, 3, 4, 6)
    y = norm(x)
    torch.testing.assert_close(y.square().mean(1), torch.ones(2, 3, 4, 6), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm(x[:, :, 1:2, 2:3]), y[:, :, 1:2, 2:3])


def test_latents_have_zero_mean_and_unit_variance_once_the_statistics_have_settled(codec: PocketCodec) -> None:
    video = clip(9)
    with torch.no_grad():
        for _ in range(500):
            codec.update_statistics(codec.raw(video)[0])
        z = codec.encode(video)
    spread, centre = torch.var_mean(z, dim=(0, 2, 3, 4))
    torch.testing.assert_close(centre, torch.zeros(6), rtol=0, atol=1e-2)
    torch.testing.assert_close(spread, torch.ones(6), rtol=1e-2, atol=0)


def test_statistics_ignore_a_batch_that_is_not_finite(codec: PocketCodec) -> None:
    before = codec.mean.clone(), codec.variance.clone()
    codec.update_statistics(torch.full((1, 6, 2, 2, 2), torch.inf))
    assert torch.equal(codec.mean, before[0])
    assert torch.equal(codec.variance, before[1])
