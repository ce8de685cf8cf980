"""One primitive for inpainting, edits and Time-to-Move: each against its own formula, with every kind of sampler."""

from __future__ import annotations

import pytest
import torch

from kinema.diffusion.noise import Noise
from kinema.diffusion.overwrite import Known, Overwrite, by_level, by_ratio
from kinema.diffusion.samplers import SAMPLERS
from kinema.diffusion.schedules import (
    CosineLogSNR,
    EDMSigmas,
    Level,
    RectifiedFlow,
    spaced,
    variance_preserving,
)
from kinema.schema import BadRequest

SHAPE = (2, 2, 5, 3, 4)
GIVEN = 2
STOCHASTIC = ("vdm-ancestral", "vdm-langevin", "ddim", "euler-ancestral", "dpmpp-sde", "lcm")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def first_frames(count=GIVEN):
    mask = torch.zeros(1, 1, *SHAPE[2:], dtype=torch.float64)
    mask[:, :, :count] = 1
    return mask


CONTENT, FIXED = random(*SHAPE, seed=2), random(*SHAPE, seed=3)
LEVELS = spaced(CosineLogSNR(), 6)


def overwrite(*pieces, levels=LEVELS, seeds=(5, 6)):
    return Overwrite(pieces, levels, Noise(seeds), FIXED)


def mixing(z, level):
    """A denoiser that mixes frames, so that what is known reaches what is not."""
    return 0.5 * z.roll(1, 2) + 0.3 * z.tanh()


# ------------------------------------------------------------------------------- the two replacements


@pytest.mark.parametrize("drawn", ["fresh", "posterior"])
@pytest.mark.parametrize("schedule", [CosineLogSNR(), RectifiedFlow()], ids=repr)
def test_given_pixels_have_their_marginal_at_every_state(drawn, schedule):
    """Mean alpha x and variance sigma² along a whole run; the posterior's also hang together over the steps."""
    shape, levels = (1, 1, 2, 100, 100), spaced(schedule, 8)
    given, mask = torch.full(shape, 0.7, dtype=torch.float64), torch.ones(1, 1, *shape[2:], dtype=torch.float64)
    over = Overwrite([Known(given, mask, None, drawn)], levels, Noise([5]), given)
    eps = []
    for i in range(8):
        noise = (over.state(torch.zeros_like(given), i) - levels.alpha[i] * given) / levels.sigma[i]
        assert float(noise.mean()) == pytest.approx(0, abs=0.03)
        assert float(noise.std()) == pytest.approx(1, abs=0.03)
        eps.append(noise.flatten())
    for i, (before, after) in enumerate(zip(eps, eps[1:], strict=False)):
        kept = float(levels.alpha[i] * levels.sigma[i + 1] / (levels.alpha[i + 1] * levels.sigma[i]))  # q(z_s | x, z_t)
        assert float((before * after).mean()) == pytest.approx(kept if drawn == "posterior" else 0, abs=0.03)


def test_a_given_piece_leaves_the_rest_of_the_state_alone():
    z, mask = random(*SHAPE, seed=1), first_frames()
    found = overwrite(Known(CONTENT, mask, None)).state(z, 2)
    noised = LEVELS[2].batch(2).add_noise(CONTENT, Noise([5, 6]).like(CONTENT))
    assert torch.equal(found, torch.where(mask > 0, noised, z))


@pytest.mark.parametrize("drawn", ["fresh", "posterior", "fixed"])
def test_a_state_that_is_asked_for_twice_is_the_same(drawn):
    """Heun, UniPC and Langevin look at a state more than once: it must not change between."""
    over = overwrite(Known(CONTENT, first_frames(), None, drawn))
    first, again = (over.state(random(*SHAPE, seed=seed), 3) for seed in (1, 2))
    assert torch.equal(first[:, :, :GIVEN], again[:, :, :GIVEN])


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("drawn", ["fresh", "posterior", "fixed"])
def test_every_sampler_returns_what_is_given_exactly(name, drawn):
    over = overwrite(Known(CONTENT, first_frames(), None, drawn))
    run = {"noise": Noise([0, 1]), "state": over.run()}
    found = SAMPLERS[name](over.around(mixing), over.start(FIXED), LEVELS, **run)
    torch.testing.assert_close(found[:, :, :GIVEN], CONTENT[:, :, :GIVEN], atol=1e-12, rtol=0)
    assert (found - CONTENT)[:, :, GIVEN:].abs().mean() > 0.1


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_call_of_the_network_sees_what_is_given_at_that_level(name):
    """Also the second calls of a step (VDM, section 3.1: before the network sees it)."""
    seen = []

    def denoise(z, level):
        seen.append((z, level))
        return mixing(z, level)

    over = overwrite(Known(CONTENT, first_frames(), None, "fixed"))
    SAMPLERS[name](over.around(denoise), over.start(FIXED), LEVELS, noise=Noise([0, 1]), state=over.run())
    for z, level in seen:
        torch.testing.assert_close(z[:, :, :GIVEN], level.add_noise(CONTENT, FIXED)[:, :, :GIVEN])


# --------------------------------------------------------------------------------- edits


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_piece_over_everything_with_one_noise_is_sdedit(name):
    """Meng et al. 2022, alg. 1: start from the noised clip at the level of the release; the sampler does the rest."""
    over = overwrite(Known(CONTENT, torch.ones(1, 1, *SHAPE[2:]), 2, "fixed"))
    assert over.first == 2
    run = {"noise": Noise([0, 1]), "state": over.run(over.first)}
    found = SAMPLERS[name](over.around(mixing), over.start(random(*SHAPE, seed=9)), LEVELS[2:], **run)
    noised = LEVELS[2].batch(2).add_noise(CONTENT, FIXED)
    assert torch.equal(found, SAMPLERS[name](mixing, noised, LEVELS[2:], noise=Noise([0, 1])))


def test_an_edit_that_is_never_released_is_the_clip():
    over = overwrite(Known(CONTENT, torch.ones(1, 1, *SHAPE[2:]), 6, "fixed"))
    assert over.first == 6
    torch.testing.assert_close(over.start(FIXED), CONTENT, atol=1e-12, rtol=0)


def test_frames_of_an_edit_ratio_are_held_until_their_time_and_then_free():
    """Open-Sora's edit ratio: frames stay as they are while t is above it, and take part from there."""
    levels = spaced(RectifiedFlow(), 10)
    release = by_ratio(0.4, levels.sigma)
    assert release == 6
    over, seen = overwrite(Known(CONTENT, first_frames(), release, "fixed"), levels=levels), []
    run = {"noise": Noise([0, 1]), "state": over.run(), "on_step": lambda *told: seen.append(told)}
    found = SAMPLERS["euler"](over.around(mixing), over.start(FIXED), levels, **run)
    z = over.start(FIXED)
    for i in range(10):
        z = levels[i + 1].batch(2).add_noise(x0 := mixing(z, None), (z - levels.alpha[i] * x0) / levels.sigma[i])
        if i + 1 <= 6:
            noised = levels[i + 1].batch(2).add_noise(CONTENT, FIXED)
            z[:, :, :GIVEN] = noised[:, :, :GIVEN]
    torch.testing.assert_close(found, z)
    assert (found - CONTENT)[:, :, :GIVEN].abs().mean() > 0.1


# ----------------------------------------------------------------------------- Time-to-Move


def time_to_move(step, weak, strong, levels, mask, noise=None):
    """The published loop, written out: ``step(z, i)`` is one step of a solver."""
    n = len(levels) - 1
    x = levels[weak].batch(2).add_noise(CONTENT, FIXED)
    for i in range(weak, n):
        x = step(x, i)
        if i < strong:
            back = levels[i + 1].batch(2).add_noise(CONTENT, FIXED) if i + 1 < n else CONTENT
            x = (1 - mask) * x + mask * back
    return x


def moved(name, weak, strong, levels, mask):
    everywhere = torch.ones_like(mask)
    over = overwrite(Known(CONTENT, everywhere, weak, "fixed"), Known(CONTENT, mask, strong, "fixed"), levels=levels)
    assert over.first == weak
    run = {"noise": Noise([0, 1]), "state": over.run(weak)}
    return SAMPLERS[name](over.around(mixing), over.start(random(*SHAPE, seed=8)), levels[weak:], **run)


@pytest.mark.parametrize(("weak", "strong"), [(2, 4), (0, 3), (3, 6), (1, 1)])
@pytest.mark.parametrize("schedule", [RectifiedFlow(5.0), CosineLogSNR()], ids=repr)
def test_two_releases_are_time_to_move(weak, strong, schedule):
    levels, mask = spaced(schedule, 6), first_frames()

    def step(z, i):
        return SAMPLERS["euler"](mixing, z, levels[i : i + 2], noise=Noise([0, 1]))

    found = moved("euler", weak, strong, levels, mask)
    torch.testing.assert_close(found, time_to_move(step, weak, strong, levels, mask), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("name", ["ddim", "vdm-ancestral", "lcm"])
def test_time_to_move_with_a_stochastic_solver(name):
    """The solver's own noise is drawn as without it: fixed noise takes no draw."""
    levels, mask, draws = spaced(CosineLogSNR(), 6), first_frames(), Noise([0, 1])

    def step(z, i):
        return SAMPLERS[name](mixing, z, levels[i : i + 2], noise=draws)

    torch.testing.assert_close(moved(name, 2, 4, levels, mask), time_to_move(step, 2, 4, levels, mask))


def test_time_to_move_with_a_multistep_solver_keeps_the_history_of_the_network():
    """DPM++(2M) written out: its history is what the network said, also in cells that are overwritten after."""
    levels, mask, history = spaced(CosineLogSNR(), 6), first_frames(), []

    def step(z, i):
        t, s, x0 = levels[i].batch(2), levels[i + 1].batch(2), mixing(z, None)
        h = (levels.log_snr[i + 1] - levels.log_snr[i]) / 2
        slope = 0
        if history and float(s.sigma[0]) > 0:
            before = (levels.log_snr[i] - levels.log_snr[i - 1]) / 2
            slope = (x0 - history[-1]) * float(h / before)
        history.append(x0)
        ratio = float(s.sigma[0] / t.sigma[0])
        shrink = float(t.alpha[0] * s.sigma[0] / (s.alpha[0] * t.sigma[0]))
        return ratio * z + float(s.alpha[0]) * (1 - shrink) * (x0 + slope / 2)

    torch.testing.assert_close(moved("dpmpp-2m", 2, 4, levels, mask), time_to_move(step, 2, 4, levels, mask))


# ------------------------------------------------------------------------------- when pieces go


def shifted(shift):
    """Fifty steps of a flow with this shift, as published for Wan (5)."""
    t = torch.linspace(1, 0, 51, dtype=torch.float64)
    return Level(1 - (t := shift * t / (1 + (shift - 1) * t)), t)


def test_time_to_moves_indices_come_from_nearest_noise_levels():
    """Published for 50 steps: Wan 3 and 7, for a camera 2 and 5; SVD 16 and 21."""
    wan = shifted(5.0)
    assert [by_level(s, wan) for s in (0.987, 0.969)] == [3, 7]
    assert [by_level(s, wan) for s in (0.992, 0.978)] == [2, 5]
    svd = spaced(EDMSigmas(0.002, 700.0), 50, "karras")
    assert [by_level(s, svd) for s in (0.987, 0.969)] == [16, 21]


def test_a_schedule_that_never_reaches_a_level_gives_its_noisiest():
    levels = variance_preserving(torch.tensor([-1.0, 0.0, 2.0, 40.0], dtype=torch.float64))
    assert by_level(0.987, levels) == 0


def test_a_ratio_below_every_time_holds_to_the_end():
    assert by_ratio(0.0, torch.tensor([1.0, 0.5, 0.1])) == 2
    assert by_ratio(0.5, torch.tensor([1.0, 0.5, 0.1])) == 1
    assert by_ratio(1.0, torch.tensor([1.0, 0.5, 0.1])) == 0


def test_a_release_beyond_the_run_is_refused():
    with pytest.raises(BadRequest, match="expected 0 to 6"):
        overwrite(Known(CONTENT, first_frames(), 7))
