from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kinema.diffusion.overwrite import Known
from kinema.diffusion.schedules import Level
from kinema.families.vdm.config import Config
from kinema.families.vdm.family import FAMILY
from kinema.families.vdm.super_resolution import cascade, smaller, steered, super_resolve
from kinema.schema import BadRequest, Request
from kinema.system import System, Weights

HALF = Level(torch.tensor([0.6], dtype=torch.float64), torch.tensor([0.8], dtype=torch.float64))


def system(config: Config, seed: int = 0) -> System:
    return System("vdm/tiny", FAMILY, config, Weights(seed=seed))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def upper(tiny: Config) -> System:
    """9×32×32 after the 8×16×16 of the base, as the paper's 9×128×128 after its 16×64×64."""
    return system(replace(tiny, frames=9, side=32, attention_sides=(8, 16), sampling_steps=2), seed=1)


def test_smaller_averages_pixels_and_takes_every_nth_frame() -> None:
    video = random(1, 3, 9, 8, 8)
    small = smaller(video, 2, every=4)
    assert small.shape == (1, 3, 3, 4, 4)
    torch.testing.assert_close(small[0, 1, 2, 1, 3], video[0, 1, 8, 2:4, 6:8].mean())


def test_steering_a_linear_denoiser_is_the_closed_form() -> None:
    """x0 = c z and a mean over 4 pixels: the gradient of the squared error is -2 c (low - small(x0)) / 4."""
    z, low, c, weight = random(1, 3, 5, 8, 8), random(1, 3, 2, 4, 4, seed=1), 0.7, 3.0
    got = steered(lambda z, _level: c * z, low, factor=2, every=4, weight=weight)(z, HALF)
    want = c * z
    missing = (low - smaller(c * z, 2, 4)).repeat_interleave(2, -1).repeat_interleave(2, -2)
    want[:, :, ::4] += weight * 0.6 * c * missing / 4
    torch.testing.assert_close(got, want, rtol=0, atol=1e-14)


def test_large_frames_that_are_given_enter_the_gradient() -> None:
    z, low = random(1, 3, 5, 8, 8), random(1, 3, 2, 4, 4, seed=1)
    mask = torch.zeros(1, 1, 5, 8, 8)
    mask[:, :, 0] = 1
    mixing = random(5, 5, seed=2)

    def denoise(z: Tensor, _level: Level) -> Tensor:
        return torch.einsum("st,bcthw->bcshw", mixing, z)

    got = [
        steered(denoise, low, factor=2, every=4, known=Known(random(1, 3, 5, 8, 8, seed=seed), mask, None))(z, HALF)
        for seed in (3, 4)
    ]
    assert (got[0] - got[1])[:, :, 1:].abs().max() > 1e-3


def test_steering_brings_the_networks_clip_nearer_to_the_small_one(upper: System) -> None:
    low = random(1, 3, 9, 16, 16, seed=5).float().clamp(-1, 1)
    request = Request(seed=0, guidance=1.0)
    apart = [
        (smaller(super_resolve(upper, low, request, weight=weight), 2) - low).square().mean().item()
        for weight in (0.0, 2.0)
    ]
    assert apart[1] < 0.8 * apart[0]


def test_blocks_of_a_long_clip_share_the_frame_where_they_meet(upper: System) -> None:
    """The last frame of a block is held by the next, or the joined clip would jump there."""
    low = random(1, 3, 5, 16, 16, seed=5).float().clamp(-1, 1)
    whole = super_resolve(upper, low, Request(seed=0, guidance=1.0), every=4)
    assert whole.shape[2] == 20
    alone = super_resolve(upper, low[:, :, :3], Request(seed=0, guidance=1.0), every=4)
    assert torch.equal(whole[:, :, :9], alone[:, :, :9])


def test_the_cascade_makes_every_times_the_frames_at_the_large_side(tiny: Config, upper: System) -> None:
    video = cascade(system(tiny), upper, Request(prompt="a red ball rolls right", seed=0), every=4)
    assert video.shape == (1, 3, 32, 32, 32)
    assert bool(video.isfinite().all())
    assert video.abs().max() <= 1


def test_the_cascade_is_seeded_and_clips_are_independent(tiny: Config, upper: System) -> None:
    base = system(replace(tiny, frames=4, sampling_steps=2))

    def make(seed: int, clips: int) -> Tensor:
        return cascade(base, upper, Request(prompt="a red ball", seed=seed, clips=clips), every=4)

    both = make(7, 2)
    torch.testing.assert_close(both[1:], make(8, 1), rtol=0, atol=1e-4)
    assert (both[0] - both[1]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("shape", "every", "changes", "said"),
    [
        ((1, 3, 9, 12, 12), 1, {}, "whole multiple"),
        ((1, 3, 9, 16, 16), 3, {}, "do not begin and end"),
        ((2, 3, 9, 16, 16), 1, {}, "2 clips"),
        ((1, 3, 9, 16, 16), 1, {"window": 4}, "window"),
    ],
)
def test_what_cannot_be_resolved_is_refused(
    upper: System, shape: tuple[int, ...], every: int, changes: dict[str, float], said: str
) -> None:
    with pytest.raises(BadRequest, match=said):
        super_resolve(upper, torch.zeros(shape), Request(seed=0, **changes), every=every)
