"""Overwriting known regions: inpainting, edits and Time-to-Move against their formulas, with every sampler."""

from __future__ import annotations

import pytest
import torch

from kinema.diffusion.noise import Noise
from kinema.diffusion.overwrite import (
    CAMERA_MOTION,
    CleanFrames,
    KnownRegion,
    Overwrite,
    release_at_level,
    release_at_ratio,
    time_to_move,
)
from kinema.diffusion.parameterise import EDM, EPS, FLOW, X0, V
from kinema.diffusion.samplers import SAMPLERS
from kinema.diffusion.schedules import (
    CosineLogSNR,
    DiscreteBetas,
    EDMSigmas,
    NoiseLevel,
    RectifiedFlow,
    spaced,
    variance_preserving,
)
from kinema.schema import BadRequest

SHAPE = (2, 2, 5, 3, 4)
GIVEN = 2


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
    """A denoiser that mixes frames, so that known frames influence unknown ones."""
    return 0.5 * z.roll(1, 2) + 0.3 * z.tanh()


# ------------------------------------------------------------------------------- the two replacements


@pytest.mark.parametrize("region_noise", ["fresh", "posterior"])
@pytest.mark.parametrize("schedule", [CosineLogSNR(), RectifiedFlow()], ids=repr)
def test_given_pixels_have_the_right_marginal_in_every_state(region_noise, schedule):
    """Mean alpha x and variance sigma² in every state; "posterior" noise is also correlated between states."""
    shape, levels = (1, 1, 2, 100, 100), spaced(schedule, 8)
    given, mask = torch.full(shape, 0.7, dtype=torch.float64), torch.ones(1, 1, *shape[2:], dtype=torch.float64)
    over = Overwrite([KnownRegion(given, mask, None, region_noise)], levels, Noise([5]), given)
    eps = []
    for i in range(8):
        noise = (over.state(torch.zeros_like(given), i) - levels.alpha[i] * given) / levels.sigma[i]
        assert float(noise.mean()) == pytest.approx(0, abs=0.03)
        assert float(noise.std()) == pytest.approx(1, abs=0.03)
        eps.append(noise.flatten())
    for i, (before, after) in enumerate(zip(eps, eps[1:], strict=False)):
        kept = float(levels.alpha[i] * levels.sigma[i + 1] / (levels.alpha[i + 1] * levels.sigma[i]))  # q(z_s | x, z_t)
        assert float((before * after).mean()) == pytest.approx(kept if region_noise == "posterior" else 0, abs=0.03)


def test_overwriting_leaves_the_rest_of_the_state_unchanged():
    z, mask = random(*SHAPE, seed=1), first_frames()
    found = overwrite(KnownRegion(CONTENT, mask, None)).state(z, 2)
    noised = LEVELS[2].batch(2).add_noise(CONTENT, Noise([5, 6]).like(CONTENT))
    assert torch.equal(found, torch.where(mask > 0, noised, z))


@pytest.mark.parametrize("region_noise", ["fresh", "posterior", "fixed"])
def test_repeated_calls_for_a_state_use_the_same_noise(region_noise):
    """Heun, UniPC and Langevin samplers evaluate a state more than once."""
    over = overwrite(KnownRegion(CONTENT, first_frames(), None, region_noise))
    first, again = (over.state(random(*SHAPE, seed=seed), 3) for seed in (1, 2))
    assert torch.equal(first[:, :, :GIVEN], again[:, :, :GIVEN])


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("region_noise", ["fresh", "posterior", "fixed"])
def test_every_sampler_returns_given_pixels_exactly(name, region_noise):
    over = overwrite(KnownRegion(CONTENT, first_frames(), None, region_noise))
    run = {"noise": Noise([0, 1]), "state": over.run()}
    found = SAMPLERS[name](over.around(mixing), over.start(FIXED), LEVELS, **run)
    torch.testing.assert_close(found[:, :, :GIVEN], CONTENT[:, :, :GIVEN], atol=1e-12, rtol=0)
    assert (found - CONTENT)[:, :, GIVEN:].abs().mean() > 0.1


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_network_call_gets_given_pixels_at_its_level(name):
    """Including second calls within a step (VDM, section 3.1)."""
    seen = []

    def denoise(z, level):
        seen.append((z, level))
        return mixing(z, level)

    over = overwrite(KnownRegion(CONTENT, first_frames(), None, "fixed"))
    SAMPLERS[name](over.around(denoise), over.start(FIXED), LEVELS, noise=Noise([0, 1]), state=over.run())
    for z, level in seen:
        torch.testing.assert_close(z[:, :, :GIVEN], level.add_noise(CONTENT, FIXED)[:, :, :GIVEN])


# --------------------------------------------------------------------------------- edits


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_region_of_everything_with_fixed_noise_is_sdedit(name):
    """Meng et al. 2022, alg. 1: sample from the noised clip at the release's level."""
    over = overwrite(KnownRegion(CONTENT, torch.ones(1, 1, *SHAPE[2:]), 2, "fixed"))
    assert over.first == 2
    run = {"noise": Noise([0, 1]), "state": over.run(over.first)}
    found = SAMPLERS[name](over.around(mixing), over.start(random(*SHAPE, seed=9)), LEVELS[2:], **run)
    noised = LEVELS[2].batch(2).add_noise(CONTENT, FIXED)
    assert torch.equal(found, SAMPLERS[name](mixing, noised, LEVELS[2:], noise=Noise([0, 1])))


def test_an_edit_released_at_the_clean_end_is_the_source():
    over = overwrite(KnownRegion(CONTENT, torch.ones(1, 1, *SHAPE[2:]), 6, "fixed"))
    assert over.first == 6
    torch.testing.assert_close(over.start(FIXED), CONTENT, atol=1e-12, rtol=0)


def test_frames_with_an_edit_ratio_are_held_until_their_release():
    """Open-Sora's edit ratio: frames are held while t is above it, then sampled."""
    levels = spaced(RectifiedFlow(), 10)
    release = release_at_ratio(0.4, levels.sigma)
    assert release == 6
    over, seen = overwrite(KnownRegion(CONTENT, first_frames(), release, "fixed"), levels=levels), []
    run = {"noise": Noise([0, 1]), "state": over.run(), "on_step": lambda *step: seen.append(step)}
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


def published_loop(step, weak, strong, levels, mask, noise=None):
    """The published loop; ``step(z, i)`` is one step of a solver."""
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
    over = overwrite(
        KnownRegion(CONTENT, everywhere, weak, "fixed"), KnownRegion(CONTENT, mask, strong, "fixed"), levels=levels
    )
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
    torch.testing.assert_close(found, published_loop(step, weak, strong, levels, mask), atol=1e-12, rtol=1e-10)


# ------------------------------------------------------------------------- clean conditioning frames


HELD = torch.tensor([[True, True, False, False, False]])
KINDS = {"eps": EPS, "v": V, "x0": X0, "flow": FLOW, "edm": EDM(0.5)}


@pytest.mark.parametrize(
    ("kind", "level"),
    [(kind, LEVELS[3]) for kind in KINDS] + [(kind, spaced(RectifiedFlow(), 6)[0]) for kind in KINDS if kind != "eps"],
)
def test_clean_frames_are_returned_unchanged_and_the_others_as_without_them(kind, level):
    """Including the noise end of a flow, where the others' alpha is 0."""
    z, net = random(*SHAPE, seed=1), KINDS[kind].denoiser(lambda z, _: z.tanh())
    found = CleanFrames(net, HELD)(z, level.batch(2))
    assert torch.equal(found[:, :, :GIVEN], z[:, :, :GIVEN])
    torch.testing.assert_close(found[:, :, GIVEN:], net(z, level.batch(2))[:, :, GIVEN:])


def test_the_network_gets_a_level_per_frame():
    seen = []
    held = torch.tensor([[True, False, False, False, False], [False, False, False, False, True]])
    CleanFrames(lambda z, level: seen.append(level) or z, held)(CONTENT, LEVELS[2].batch(2))
    CleanFrames(lambda z, level: seen.append(level) or z, torch.zeros(1, 5))(CONTENT, LEVELS[2].batch(2))
    alpha, sigma = float(LEVELS.alpha[2]), float(LEVELS.sigma[2])
    assert seen[0].alpha.tolist() == [[1, alpha, alpha, alpha, alpha], [alpha, alpha, alpha, alpha, 1]]
    assert seen[0].sigma.tolist() == [[0, sigma, sigma, sigma, sigma], [sigma, sigma, sigma, sigma, 0]]
    assert seen[1].alpha.tolist() == [[alpha] * 5] * 2


@pytest.mark.parametrize("name", SAMPLERS)
def test_clean_frames_in_the_state_equal_replacement_at_the_networks_input(name):
    """Wan's TI2V-5B: the other frames are the same either way, and the network gets given frames without noise."""

    def denoise(z, level):
        torch.testing.assert_close(z[:, :, :GIVEN], CONTENT[:, :, :GIVEN], atol=0, rtol=0)
        assert bool((level.sigma[:, :GIVEN] == 0).all())
        return mixing(z, level)

    over = overwrite(KnownRegion(CONTENT, first_frames(), None, "clean"))
    inner = CleanFrames(denoise, over.clean)
    found = SAMPLERS[name](over.around(inner), over.start(FIXED), LEVELS, noise=Noise([0, 1]), state=over.run())
    assert torch.equal(found[:, :, :GIVEN], CONTENT[:, :, :GIVEN])

    def at_input(z, level):
        return CleanFrames(mixing, HELD)(torch.where(first_frames() > 0, CONTENT, z), level)

    alone = SAMPLERS[name](at_input, FIXED, LEVELS, noise=Noise([0, 1]))
    torch.testing.assert_close(found[:, :, GIVEN:], alone[:, :, GIVEN:])


def test_a_released_clean_region_is_open_sora_1_2s_edit():
    """Frames stay clean while t is above the ratio, then are noised to the first t below it and sampled from there."""
    levels = spaced(RectifiedFlow(), 10)
    times, sigmas = levels.sigma.tolist(), []
    over = overwrite(KnownRegion(CONTENT, first_frames(), release_at_ratio(0.4, levels.sigma), "clean"), levels=levels)

    def denoise(z, level):
        sigmas.append(level.sigma[0].tolist())
        return mixing(z, level)

    run = {"noise": Noise([0, 1]), "state": over.run()}
    found = SAMPLERS["euler"](over.around(CleanFrames(denoise, over.clean)), over.start(FIXED), levels, **run)
    z, updated = torch.where(first_frames() > 0, CONTENT, FIXED), False
    for i, t in enumerate(times[:-1]):
        if t <= 0.4 and not updated:
            z = torch.where(first_frames() > 0, (1 - t) * CONTENT + t * Noise((5, 6)).like(z), z)
            updated = True
        velocity = (z - mixing(z, None)) / t
        stepped = z - (t - times[i + 1]) * velocity
        z = stepped if updated else torch.where(first_frames() > 0, z, stepped)
    torch.testing.assert_close(found, z)
    assert sigmas == [[0.0, 0.0, t, t, t] if t > 0.4 else [t] * 5 for t in times[:-1]]


def test_only_entirely_clean_frames_are_clean_frames():
    part = first_frames()
    part[:, :, 1, 0, 0] = 0
    noisy = first_frames().flip(2)
    over = overwrite(KnownRegion(CONTENT, part, None, "clean"), KnownRegion(CONTENT, noisy, None, "fresh"))
    assert over.clean(LEVELS[2].batch(2)).tolist() == [[True, False, False, False, False]]


# ------------------------------------------------------------------------------- releases


def shifted(shift):
    """Fifty steps of a flow with this shift, as published for Wan (5)."""
    t = torch.linspace(1, 0, 51, dtype=torch.float64)
    return NoiseLevel(1 - (t := shift * t / (1 + (shift - 1) * t)), t)


def test_time_to_moves_published_steps_follow_from_noise_levels():
    """Published for 50 steps: Wan 3 and 7, with camera motion 2 and 5; SVD 16 and 21."""
    assert time_to_move(shifted(5.0)) == (3, 7)
    assert time_to_move(shifted(5.0), CAMERA_MOTION) == (2, 5)
    assert time_to_move(spaced(EDMSigmas(0.002, 700.0), 50, "karras")) == (16, 21)


@pytest.mark.parametrize(("steps", "releases"), [(50, (4, 9)), (25, (2, 4)), (100, (8, 18)), (4, (0, 1))])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_time_to_move_uses_fractions_of_the_steps_if_no_level_is_noisy_enough(steps, releases, spacing):
    """Stable Diffusion's betas end near 0.936; CogVideoX's 4 and 9 of 50 steps are published."""
    levels = spaced(DiscreteBetas("scaled_linear", 0.00085, 0.012), steps, spacing)
    assert float((levels.sigma / (levels.alpha + levels.sigma)).max()) < 0.94
    assert time_to_move(levels) == releases


def test_a_noise_level_beyond_the_schedule_maps_to_its_noisiest_state():
    levels = variance_preserving(torch.tensor([-1.0, 0.0, 2.0, 40.0], dtype=torch.float64))
    assert release_at_level(0.987, levels) == 0


def test_the_release_is_the_first_time_at_or_below_the_ratio():
    assert release_at_ratio(0.0, torch.tensor([1.0, 0.5, 0.1])) == 2
    assert release_at_ratio(0.5, torch.tensor([1.0, 0.5, 0.1])) == 1
    assert release_at_ratio(1.0, torch.tensor([1.0, 0.5, 0.1])) == 0


def test_a_release_beyond_the_run_is_rejected():
    with pytest.raises(BadRequest, match="expected 0 to 6"):
        overwrite(KnownRegion(CONTENT, first_frames(), 7))


# -------------------------------------------------------------------- what the network is told, further channels


@pytest.mark.parametrize(("kind", "told"), [("clean", 1), ("lagging", 2)])
def test_a_lagging_region_is_told_clean_one_state_longer_than_it_is(kind, told):
    """Open-Sora 1.1: the frame is noised, and updated, in a step in which the network still takes it for clean."""
    over = overwrite(KnownRegion(CONTENT, first_frames(), 2, kind))
    held = torch.tensor([True] * GIVEN + [False] * (SHAPE[2] - GIVEN))
    for i in range(5):
        level = LEVELS[i].batch(2)
        assert torch.equal(over.clean(level), held[None] & (i <= 1))
        assert torch.equal(over.told_clean(level), held[None] & (i <= told))
        state = over.state(FIXED, i)
        assert torch.equal(state[:, :, :GIVEN], CONTENT[:, :, :GIVEN]) == (i < 2)
        assert torch.equal(state[:, :, :GIVEN], FIXED[:, :, :GIVEN]) == (i > 2)


def test_a_frame_that_is_told_clean_need_not_be():
    """x0 is copied where frames are clean; the network's level is clean where it is told so, and z's own is named."""
    levels, level = [], LEVELS[3].batch(2)
    told = HELD.roll(2, 1)

    def denoise(z, at):
        levels.append(at)
        return mixing(z, at)

    found = CleanFrames(denoise, HELD, lambda _level: told)(CONTENT, level)
    assert torch.equal(levels[0].sigma == 0, told.expand(2, -1))
    assert levels[0].state is level
    assert torch.equal(found, torch.where(HELD[:, None, :, None, None], CONTENT, mixing(CONTENT, level)))


def test_further_channels_of_a_denoiser_are_handed_on():
    """A learned variance after x0 passes by the known regions, held clean or not."""
    region = KnownRegion(CONTENT, first_frames(), None, "clean")

    def learned(z, level):
        return torch.cat([mixing(z, level), 3 * z], 1)

    over, level = overwrite(region), LEVELS[3].batch(2)
    for denoise in (learned, CleanFrames(learned, HELD)):
        found = over.around(denoise)(FIXED, level)
        assert torch.equal(found[:, SHAPE[1] :], 3 * FIXED)
        assert torch.equal(found[:, : SHAPE[1], :GIVEN], CONTENT[:, :, :GIVEN])
        assert torch.equal(found[:, : SHAPE[1], GIVEN:], mixing(FIXED, level)[:, :, GIVEN:])
    alone = CleanFrames(learned, HELD)(FIXED, level)
    assert torch.equal(alone[:, SHAPE[1] :], 3 * FIXED)
    assert torch.equal(alone[:, : SHAPE[1], :GIVEN], FIXED[:, :, :GIVEN])
