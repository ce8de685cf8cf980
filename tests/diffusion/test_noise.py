"""Noise per batch item, and FreeNoise's rescheduling."""

from __future__ import annotations

import pytest
import torch

from kinema.diffusion.noise import Noise, reschedule_noise


def test_item_i_of_a_batch_equals_its_single_run():
    both, second = Noise([3, 9]), Noise([9])
    z = torch.zeros(2, 3, 4, 5, 6)
    for _ in range(3):
        assert torch.equal(both.like(z)[1:], second.like(z[1:]))


def test_same_seeds_give_the_same_noise_in_every_precision():
    z = torch.zeros(1, 2, 3, 4, 4)
    single = Noise([5]).like(z)
    assert torch.equal(Noise([5]).like(z.double()).float(), single)
    assert torch.equal(Noise([5]).normal(z.shape[1:]), single)
    assert Noise([5]).like(z.bfloat16()).dtype == torch.bfloat16


def test_successive_draws_differ_and_are_standard_normal():
    noise = Noise([0, 1])
    first, second = noise.normal((50_000,)), noise.normal((50_000,))
    assert not torch.equal(first, second)
    draws = torch.cat([first, second])
    assert float(draws.mean()) == pytest.approx(0, abs=0.01)
    assert float(draws.std()) == pytest.approx(1, abs=0.01)


def test_a_batch_of_the_wrong_size_is_an_error():
    with pytest.raises(ValueError, match="2 seeds"):
        Noise([0, 1]).like(torch.zeros(3, 1))


# -------------------------------------------------------------------------------------- FreeNoise


def numbered(batch, frames):
    """Noise whose value is its frame's index."""
    return torch.arange(frames).float().reshape(1, 1, -1, 1, 1).expand(batch, 2, -1, 3, 3).clone()


def test_repeat_context_repeats_the_first_frames():
    long = reschedule_noise(numbered(1, 10), "repeat-context", 4, 1, Noise([0]))
    assert long[0, 0, :, 0, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize(("frames", "length", "stride"), [(64, 16, 4), (19, 8, 3), (12, 16, 4), (16, 8, 8)])
def test_shuffle_context_permutes_the_noise_of_earlier_frames(frames, length, stride):
    long = reschedule_noise(numbered(1, frames), "shuffle-context", length, stride, Noise([0]))[0, 0, :, 0, 0]
    assert long[:length].tolist() == list(range(min(length, frames)))
    for start in range(length, frames, stride):
        here, before = long[start : start + stride], long[start - length : start - length + stride]
        assert set(here.tolist()) <= set(before.tolist())
        assert len(set(here.tolist())) == len(here)
    assert frames <= length or long[length:].tolist() != long[: frames - length].tolist()


def test_each_clip_of_a_batch_is_shuffled_independently():
    noise = Noise([3, 9]).normal((2, 32, 3, 3))
    both = reschedule_noise(noise, "shuffle-context", 8, 4, Noise([3, 9]))
    assert torch.equal(both[1:], reschedule_noise(noise[1:], "shuffle-context", 8, 4, Noise([9])))
    assert not torch.equal(both[0], both[1])


def test_shuffled_noise_equals_diffusers():
    pytest.importorskip("diffusers")
    from diffusers.pipelines.free_noise_utils import AnimateDiffFreeNoiseMixin

    mixin = AnimateDiffFreeNoiseMixin()
    mixin._free_noise_context_length, mixin._free_noise_context_stride = 8, 3
    mixin._free_noise_noise_type, mixin.vae_scale_factor = "shuffle_context", 8
    generator = torch.Generator().manual_seed(6)
    expected = mixin._prepare_latents_free_noise(1, 4, 21, 16, 16, torch.float32, torch.device("cpu"), generator)
    draws = Noise([6])
    assert torch.equal(reschedule_noise(draws.normal((4, 21, 2, 2)), "shuffle-context", 8, 3, draws), expected)
