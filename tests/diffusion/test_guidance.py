"""Guidance wrappers against closed forms: linear denoisers and the Gaussian oracle."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

from kinema.diffusion.guidance import (
    Difference,
    Guidance,
    Guided,
    InOneBatch,
    Thresholded,
    classifier_free,
    in_parallel,
    one_by_one,
    oscillating,
)
from kinema.diffusion.noise import Noise
from kinema.diffusion.parameterise import V
from kinema.diffusion.samplers import SAMPLERS
from kinema.diffusion.schedules import NoiseLevel, RectifiedFlow, spaced, variance_preserving
from kinema.schema import BadRequest

LEVEL = variance_preserving(torch.tensor([0.3], dtype=torch.float64))
FRAMES = 6


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -------------------------------------------------------------------------------- classifier-free


def cond(z, level):
    return z.sin()


def null(z, level):
    return 0.5 * z


def never(z, level):
    raise AssertionError("this denoiser must not be called")


def guided(cond, null, scale, rescale=0.0, interval=None, parallel=False):
    return Guided(
        {"positive": cond, "negative": null},
        classifier_free(scale, rescale, interval),
        in_parallel if parallel else one_by_one,
    )


Z = random(2, 3, FRAMES, 4, 4)
LEVEL_2 = LEVEL.batch(2)


def test_guidance_is_null_plus_scale_times_the_difference():
    """scale = 1 + w: VDM's (1 + w) cond - w null."""
    w = 2.0
    torch.testing.assert_close(guided(cond, null, 1 + w)(Z, LEVEL_2), (1 + w) * Z.sin() - w * 0.5 * Z)


def test_guiding_x0_equals_guiding_the_networks_output():
    outputs = random(2, *Z.shape, seed=1)
    expected = outputs[1] + 3.0 * (outputs[0] - outputs[1])
    ends = [lambda z, level, out=out: V.x0(out, z, level) for out in outputs]
    torch.testing.assert_close(guided(*ends, 3.0)(Z, LEVEL_2), V.x0(expected, Z, LEVEL_2))


# ---------------------------------------------------------------------------- several branches

LEVELS = spaced(RectifiedFlow(), 20, "uniform")


def opensora(text, image, **more):
    """``u2 + g_img (u1 - u2) + g_txt (c - u1)``."""
    return Guidance("none", (Difference("image", "none", image), Difference("both", "image", text)), **more)


def branch(name, called=None):
    def denoise(z, level):
        if called is not None:
            called.append(name)
        return {"none": z.cos(), "image": z.sin(), "both": 0.5 * z}[name]

    return denoise


def of_three(guidance, called=None, levels=None):
    return Guided({name: branch(name, called) for name in ("none", "image", "both")}, guidance, levels=levels)


def test_three_branches_match_the_formula():
    found = of_three(opensora(7.5, 3.0))(Z, LEVEL_2)
    torch.testing.assert_close(found, Z.cos() + 3.0 * (Z.sin() - Z.cos()) + 7.5 * (0.5 * Z - Z.sin()))


def test_scales_of_three_branches_may_differ_by_frame():
    image = torch.linspace(1, 3, FRAMES, dtype=torch.float64)
    found, per_frame = of_three(opensora(7.5, image))(Z, LEVEL_2), image.reshape(1, 1, -1, 1, 1)
    torch.testing.assert_close(found, Z.cos() + per_frame * (Z.sin() - Z.cos()) + 7.5 * (0.5 * Z - Z.sin()))


@pytest.mark.parametrize(
    ("text", "image", "contributing", "formula"),
    [
        (7.5, 1.0, {"image", "both"}, lambda z: z.sin() + 7.5 * (0.5 * z - z.sin())),
        (1.0, 1.0, {"both"}, lambda z: 0.5 * z),
        (0.0, 3.0, {"none", "image"}, lambda z: z.cos() + 3.0 * (z.sin() - z.cos())),
        (0.0, 0.0, {"none"}, lambda z: z.cos()),
        (1.0, 3.0, {"none", "image", "both"}, lambda z: z.cos() + 3 * (z.sin() - z.cos()) + (0.5 * z - z.sin())),
    ],
)
def test_a_branch_that_does_not_contribute_is_never_called(text, image, contributing, formula):
    called = []
    found = of_three(opensora(text, image), called)(Z, LEVEL_2)
    assert set(called) == contributing
    assert len(called) == len(contributing)
    torch.testing.assert_close(found, formula(Z))


def test_branches_are_those_that_may_contribute():
    assert opensora(7.5, 3.0).branches == ("none", "image", "both")
    assert opensora(0.0, 3.0).branches == ("none", "image")
    assert classifier_free(3.0).branches == ("negative", "positive")
    assert classifier_free(1.0).branches == ("positive",)
    assert classifier_free(oscillating(1.0)).branches == ("negative", "positive")


def test_oscillation_is_the_published_list_of_scales():
    scale = oscillating(7.5)
    scales = [scale(step, LEVELS[step]) for step in range(16)]
    assert scales == [7.5] * 11 + [1.0, 7.5, 1.0, 7.5, 1.0]


@pytest.mark.parametrize("step", [0, 10, 11, 12, 19])
def test_the_step_index_is_found_from_the_level(step):
    """For a level between two of the run's levels, it is the earlier step."""
    between = LEVELS.log_snr[step : step + 2].clamp(-30, 30).mean()[None]
    for level in (LEVELS[step], RectifiedFlow().level(torch.sigmoid(-between / 2))):
        called = []
        of_three(opensora(oscillating(7.5), oscillating(3.0)), called, LEVELS)(Z, level.batch(2))
        assert set(called) == ({"both"} if step in (11, 19) else {"none", "image", "both"})


def test_a_run_with_oscillation_matches_the_written_loop():
    """Open-Sora: three branches, but only the conditional one at odd steps from 11."""
    text, image, called = [7.5] * 11 + [1, 7.5] * 4 + [1], [3.0] * 11 + [1, 3.0] * 4 + [1], []
    denoise = of_three(opensora(oscillating(7.5), oscillating(3.0)), called, LEVELS)
    found = SAMPLERS["euler"](denoise, Z, LEVELS, noise=Noise([0, 1]))
    z, times = Z, LEVELS.sigma.tolist()
    for i in range(20):
        x0 = z.cos() + image[i] * (z.sin() - z.cos()) + text[i] * (0.5 * z - z.sin())
        z = z + (times[i + 1] - times[i]) * (z - x0) / times[i]
    torch.testing.assert_close(found, z)
    assert len(called) == 3 * 15 + 5


def test_outside_the_interval_only_the_conditional_branch_is_computed():
    called = []
    outside = variance_preserving(torch.tensor([3.0, 3.0], dtype=torch.float64))
    found = of_three(opensora(7.5, 3.0, interval=(-1.0, 1.0)), called)(Z, outside)
    assert called == ["both"]
    assert torch.equal(found, 0.5 * Z)


def test_rescale_uses_the_named_reference():
    for name, reference in (("both", 0.5 * Z), ("", Z.sin())):
        found = of_three(opensora(7.5, 3.0, rescale=1.0, reference=name))(Z, LEVEL_2)
        torch.testing.assert_close(found.flatten(1).std(1), reference.flatten(1).std(1))


def test_guidance_of_some_frames_selects_their_scales_and_repeats_the_last():
    whole = classifier_free(torch.arange(FRAMES, dtype=torch.float64))
    assert whole.of([2, 3, 7]).differences[0].scale.tolist() == [2, 3, 5]
    assert whole.of(None) is whole
    assert classifier_free(3.0).of([1]).differences[0].scale == 3.0
    moving = classifier_free(lambda step, _level: torch.arange(FRAMES) * step).of([1, 2])
    assert moving.differences[0].scale(2, LEVELS[2]).tolist() == [2, 4]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_parallel_branches_run_at_the_same_time_on_half_of_the_threads_each():
    meet, seen = threading.Barrier(2, timeout=20), []

    def waiting(denoise):
        def call(z, level):
            meet.wait()  # passes only once both branches are running
            seen.append((torch.get_num_threads(), torch.is_grad_enabled()))
            return denoise(z, level)

        return call

    with torch.no_grad():
        found = guided(waiting(cond), waiting(null), 3.0, parallel=True)(Z, LEVEL_2)
        assert torch.equal(found, guided(cond, null, 3.0)(Z, LEVEL_2))
    assert seen == [(1, False)] * 2
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_an_interrupt_while_the_second_thread_starts_is_raised(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    counts = []
    monkeypatch.setattr(torch, "set_num_threads", counts.append)

    def interrupted(_thread):
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        guided(cond, null, 3.0, parallel=True)(Z, LEVEL_2)
    assert counts == [1, 2]


@pytest.mark.usefixtures("two_threads")
def test_parallel_branches_restore_the_thread_count_on_errors_and_support_gradients():
    def broken(z, level):
        raise ValueError("broken branch")

    for branches in ((broken, null), (cond, broken)):
        with torch.no_grad(), pytest.raises(ValueError, match="broken branch"):
            guided(*branches, 3.0, parallel=True)(Z, LEVEL_2)
        assert torch.get_num_threads() == 2
    z = Z.clone().requires_grad_()
    guided(cond, null, 3.0, parallel=True)(z, LEVEL_2).sum().backward()
    torch.testing.assert_close(z.grad, 3 * Z.cos() - 2 * 0.5)


def in_one_batch(sizes: list[tuple[int, int]], *, joins: bool = True) -> InOneBatch:
    """Branches that are joined into one denoiser, which appends the sizes of z and level of its calls."""

    def joined(names):
        def call(z, level):
            sizes.append((len(z), len(level)))
            return torch.cat(
                [{"positive": cond, "negative": null}[n](z[i : i + 1], level) for i, n in enumerate(names)]
            )

        return call if joins else None

    return InOneBatch(joined, one_by_one)


def test_branches_in_one_batch_are_one_call_for_a_single_clip():
    one, sizes, scale = Z[:1], [], classifier_free(3.0)
    with torch.no_grad():
        found = Guided({"positive": never, "negative": never}, scale, in_one_batch(sizes))(one, LEVEL)
    assert torch.equal(found, guided(cond, null, 3.0)(one, LEVEL))
    assert sizes == [(2, 2)]


@pytest.mark.parametrize("kind", ["several clips", "gradient", "cannot join", "one branch"])
def test_branches_are_evaluated_otherwise_where_they_cannot_or_should_not_be_one_batch(kind):
    z, level = (Z, LEVEL_2) if kind == "several clips" else (Z[:1], LEVEL)
    scale, sizes = 1.0 if kind == "one branch" else 3.0, []
    evaluate = in_one_batch(sizes, joins=kind != "cannot join")
    with torch.set_grad_enabled(kind == "gradient"):
        found = Guided({"positive": cond, "negative": null}, classifier_free(scale), evaluate)(z, level)
    assert torch.equal(found, guided(cond, null, scale)(z, level))
    assert not sizes


@pytest.mark.parametrize("scale", [1.0, torch.ones(FRAMES), lambda _step, _level: 1.0])
def test_null_is_skipped_where_the_scale_is_1(scale):
    assert torch.equal(guided(cond, never, scale)(Z, LEVEL_2), Z.sin())


def test_a_scale_per_frame_guides_each_frame_separately():
    scale = torch.linspace(1, 3, FRAMES, dtype=torch.float64)
    found = guided(cond, null, scale)(Z, LEVEL_2)
    for i in range(FRAMES):
        single = guided(cond, null, float(scale[i]))(Z[:, :, i : i + 1], LEVEL_2)
        torch.testing.assert_close(found[:, :, i : i + 1], single)
    with pytest.raises(BadRequest, match="one per frame"):
        guided(cond, null, scale[:-1])(Z, LEVEL_2)


def test_a_scale_function_receives_the_level():
    guide = guided(cond, null, lambda _step, level: 1 + 4 * float(level.sigma[0]) ** 2)
    for log_snr in (-3.0, 0.0, 3.0):
        level = variance_preserving(torch.full((2,), log_snr, dtype=torch.float64))
        scale = 1 + 4 * float(torch.sigmoid(torch.tensor(-log_snr, dtype=torch.float64)))
        torch.testing.assert_close(guide(Z, level), guided(cond, null, scale)(Z, level))


def test_guidance_is_applied_only_inside_its_interval():
    guide = guided(cond, null, 5.0, interval=(-1.0, 1.0))
    inside, outside = (variance_preserving(torch.full((2,), v, dtype=torch.float64)) for v in (0.0, 4.0))
    torch.testing.assert_close(guide(Z, inside), guided(cond, null, 5.0)(Z, inside))
    assert torch.equal(guided(cond, never, 5.0, interval=(-1.0, 1.0))(Z, outside), Z.sin())
    mixed = variance_preserving(torch.tensor([0.0, 4.0], dtype=torch.float64))
    torch.testing.assert_close(guide(Z, mixed)[1], Z.sin()[1])
    torch.testing.assert_close(guide(Z, mixed)[0], guide(Z, inside)[0])


def test_full_rescale_restores_each_items_standard_deviation():
    found = guided(cond, null, 7.5, rescale=1.0)(Z, LEVEL_2)
    torch.testing.assert_close(found.flatten(1).std(1), Z.sin().flatten(1).std(1))


def test_rescale_blends_as_lin_et_al():
    plain, full, half = (guided(cond, null, 7.5, rescale=r)(Z, LEVEL_2) for r in (0.0, 1.0, 0.7))
    torch.testing.assert_close(half, 0.7 * full + 0.3 * plain)


def test_thresholding_clips_or_scales_back():
    x0 = torch.linspace(-3, 3, 100).reshape(1, 1, 1, 10, 10)
    fixed = Thresholded(lambda z, level: x0)(x0, LEVEL)
    torch.testing.assert_close(fixed, x0.clamp(-1, 1))
    dynamic = Thresholded(lambda z, level: x0, quantile=0.9)(x0, LEVEL)
    bound = float(x0.abs().flatten().sort().values[90])
    torch.testing.assert_close(dynamic, x0.clamp(-bound, bound) / bound)
    small = Thresholded(lambda z, level: x0 / 10, quantile=0.9)(x0, LEVEL)
    torch.testing.assert_close(small, x0 / 10)


# ------------------------------------------------------------------------------ channels, the flow's rescale


def test_only_the_first_channels_are_guided():
    """Open-Sora 1.0 guides three channels of four; the others are the prompt's, further ones of the output too."""
    first = replace(classifier_free(7.0), channels=2)

    def with_more(denoise):
        return lambda z, level: torch.cat([denoise(z, level), denoise(z, level) + 1], 1)

    found = Guided({"positive": with_more(cond), "negative": with_more(null)}, first)(Z, LEVEL_2)
    torch.testing.assert_close(found[:, :2], (0.5 * Z + 7 * (Z.sin() - 0.5 * Z))[:, :2])
    assert torch.equal(found[:, 2:], torch.cat([Z.sin(), Z.sin() + 1], 1)[:, 2:])


def test_channels_that_are_not_guided_need_the_prompts_branch_at_every_scale():
    first = replace(classifier_free(0.0), channels=2)
    assert set(first.branches) == {"positive", "negative"}
    found = Guided({"positive": cond, "negative": null}, first)(Z, LEVEL_2)
    assert torch.equal(found, torch.cat([(0.5 * Z)[:, :2], Z.sin()[:, 2:]], 1))


def test_a_flows_rescale_is_on_its_velocity():
    """Open-Sora 1.3: ``v (0.7 std(cond) / std(v) + 0.3)``, per clip."""
    level = RectifiedFlow().level(torch.tensor([0.6, 0.6], dtype=torch.float64))
    sigma = level.like(Z)[1]
    guide = Guided({"positive": cond, "negative": null}, replace(classifier_free(5.0, rescale=0.7), rescaled="flow"))
    v_cond, v_null = (Z - cond(Z, level)) / sigma, (Z - null(Z, level)) / sigma
    v = v_null + 5 * (v_cond - v_null)
    ratio = v_cond.flatten(1).std(1) / v.flatten(1).std(1)
    v = v * (0.7 * ratio + 0.3).reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(guide(Z, level), Z - sigma * v)


def test_rescaling_leaves_further_channels_alone():
    def with_more(denoise):
        return lambda z, level: torch.cat([denoise(z, level), 100 * z], 1)

    plain, more = (
        Guided({"positive": wrap(cond), "negative": wrap(null)}, classifier_free(5.0, rescale=0.7))(Z, LEVEL_2)
        for wrap in (lambda denoise: denoise, with_more)
    )
    torch.testing.assert_close(more[:, :3], plain)
    torch.testing.assert_close(more[:, 3:], 100 * Z)


def test_the_step_is_that_of_the_state_where_frames_are_shown_clean():
    levels = spaced(RectifiedFlow(), 4)
    steps = []
    guidance = classifier_free(lambda step, level: steps.append((step, level.per_frame)) or 2.0)
    state = levels[2].batch(2)
    told = NoiseLevel(torch.ones(2, FRAMES).double(), torch.zeros(2, FRAMES).double(), state=state)
    Guided({"positive": cond, "negative": null}, guidance, levels=levels)(Z, told)
    assert steps == [(2, False)]
