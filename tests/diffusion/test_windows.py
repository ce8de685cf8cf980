"""Temporal windows and MultiDiffusion."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinema.diffusion.noise import Noise
from kinema.diffusion.samplers import SAMPLERS
from kinema.diffusion.schedules import CosineLogSNR, spaced
from kinema.diffusion.windows import Windowed, attention_windows, blend, uniform_windows, window_sizes, windows
from kinema.grid import FrameGrid, LatentGrid, Lattice
from kinema.schema import BadRequest, Request

LEVEL = CosineLogSNR().level(torch.tensor([0.4], dtype=torch.float64))
KINDS = ["flat", "pyramid", "relative", "overlap-linear"]


def video(frames, seed=0):
    return torch.randn(1, 2, frames, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixing(z, level):
    """A denoiser in which every frame depends on every other."""
    alpha, sigma = level.like(z)
    return alpha * z.sin() + sigma * z.cumsum(2) - z.mean(2, keepdim=True) ** 2


@pytest.mark.parametrize(
    ("spans", "starts"),
    [
        ((64, 16, 4), [0, 12, 24, 36, 48]),
        ((20, 16, 4), [0, 4]),
        ((17, 16, 0), [0, 1]),
        ((16, 16, 4), [0]),
        ((9, 16, 4), [0]),
        ((5, 2, 1), [0, 1, 2, 3]),
    ],
)
def test_static_starts(spans, starts):
    found = windows(*spans)
    assert [w[0] for w in found] == starts
    assert all(w == list(range(w[0], w[0] + min(spans[0], spans[1]))) for w in found)


def test_looped_windows_wrap_around():
    found = windows(32, 16, 4, looped=True)
    assert [w[0] for w in found] == [0, 12, 24]
    assert found[2] == [*range(24, 32), *range(8)]


@given(total=st.integers(1, 80), length=st.integers(1, 20), share=st.floats(0, 0.99), looped=st.booleans())
def test_every_frame_is_covered_and_neighbours_overlap(total, length, share, looped):
    overlap = int(share * length)
    found = windows(total, length, overlap, looped)
    assert {frame for window in found for frame in window} == set(range(total))
    assert all(len(window) == len(set(window)) == min(length, total) for window in found)
    assert all(len(set(a) & set(b)) >= overlap for a, b in zip(found, found[1:], strict=False))
    assert len({tuple(window) for window in found}) == len(found)


@given(total=st.integers(1, 60), length=st.integers(2, 16), share=st.floats(0, 0.9), kind=st.sampled_from(KINDS))
def test_weights_of_every_frame_sum_to_1_and_are_positive(total, length, share, kind):
    for looped in (False, True):
        spans = windows(total, length, int(share * length), looped)
        weights = blend(spans, kind, looped)
        covered = torch.zeros(total, dtype=torch.float64)
        for window, weight in zip(spans, weights, strict=True):
            assert bool((weight > 0).all())
            covered[window] += weight
        torch.testing.assert_close(covered, torch.ones_like(covered))


def test_weights_are_flat_pyramids_or_linear_ramps():
    spans = windows(10, 6, 2)
    assert spans == [[0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 8, 9]]
    assert blend(spans, "flat")[0].tolist() == [1, 1, 1, 1, 0.5, 0.5]
    torch.testing.assert_close(blend(spans, "pyramid")[0], torch.tensor([1, 1, 1, 1, 2 / 3, 1 / 3]).double())
    torch.testing.assert_close(blend(spans, "overlap-linear")[0], torch.tensor([1, 1, 1, 1, 2 / 3, 1 / 3]).double())
    wide = blend(windows(8, 6, 4), "overlap-linear")[0]  # frames 2..5 are shared
    torch.testing.assert_close(wide, torch.tensor([1, 1, 0.8, 0.6, 0.4, 0.2]).double())
    pyramid = blend(windows(8, 6, 4), "pyramid")[0]  # 1 2 3 3 2 1 against 0 0 1 2 3 3
    torch.testing.assert_close(pyramid, torch.tensor([1, 1, 3 / 4, 3 / 5, 2 / 5, 1 / 4]).double())


def test_relative_weights_are_1_in_the_middle_and_a_hundredth_at_the_ends():
    """AnimateDiff-Evolved's bias of a frame, ``1 - |i - m| / ((n - 1 + 0.01) / 2)`` and at least 0.01."""
    first, last = blend(windows(12, 8, 4), "relative")
    bias = [max(0.01, 1 - abs(i - 3.5) / (7.01 / 2)) for i in range(8)]
    for i in range(4):
        spans = bias[4 + i] / (bias[4 + i] + bias[i])
        assert first[:4].tolist() == [1] * 4
        assert (float(first[4 + i]), float(last[i])) == pytest.approx((spans, 1 - spans))
    assert float(last[0]) < 0.02


def test_a_looped_clips_first_window_blends_with_its_last():
    spans = windows(12, 6, 2, looped=True)
    assert bool((blend(spans, "overlap-linear", looped=True)[0][:2] < 1).all())
    assert bool((blend(windows(12, 6, 2), "overlap-linear")[0][:4] == 1).all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_per_frame_denoiser_is_exact(kind):
    z = video(20)
    windowed = Windowed(lambda frames: lambda z, level: z.sin() * level.like(z)[0], 20, 8, 2, kind)
    difference = (windowed(z, LEVEL) - z.sin() * LEVEL.like(z)[0]).abs().max()
    assert float(difference) <= (0.0 if kind == "flat" else 2e-16)


def test_per_frame_conditioning_is_sliced_by_frames():
    scale = torch.arange(20, dtype=torch.float64).reshape(1, 1, -1, 1, 1)
    z = video(20)
    windowed = Windowed(lambda frames: lambda z, level: z * scale[:, :, frames], 20, 8, 3, "flat")
    torch.testing.assert_close(windowed(z, LEVEL), z * scale, atol=1e-14, rtol=1e-14)


@pytest.mark.parametrize("total", [5, 8])
def test_one_window_is_the_plain_model(total):
    z = video(total)
    assert torch.equal(Windowed(lambda frames: mixing, total, 8, 2)(z, LEVEL), mixing(z, LEVEL))


@pytest.mark.parametrize("looped", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_average_minimises_the_weighted_least_squares(kind, looped):
    """Random denoisers per window: the gradient of sum w |x0 restricted - window|² is 0 at the answer."""
    spans = windows(14, 6, 3, looped)
    answers = {tuple(frames): video(len(frames), seed=i) for i, frames in enumerate(spans)}
    windowed = Windowed(lambda frames: lambda z, level: answers[tuple(frames)], 14, 6, 3, kind, looped)
    x0 = windowed(video(14), LEVEL).requires_grad_(True)
    loss = sum(
        (weight.reshape(-1, 1, 1) * (x0[:, :, frames] - answers[tuple(frames)]) ** 2).sum()
        for frames, weight in zip(spans, blend(spans, kind, looped), strict=True)
    )
    (grad,) = torch.autograd.grad(loss, x0)
    assert float(grad.abs().max()) < 1e-14
    assert float(loss.detach()) > 1


def test_make_is_called_once_per_window_and_samplers_run_through_it():
    calls = []

    def make(frames):
        calls.append(frames)
        return lambda z, level: 0.3 * z

    windowed = Windowed(make, 20, 8, 2)
    z = video(20)
    levels = spaced(CosineLogSNR(), 5)
    found = SAMPLERS["euler"](windowed, z, levels, noise=Noise([0]))
    assert calls == windows(20, 8, 2)
    plain = SAMPLERS["euler"](lambda z, level: 0.3 * z, z, levels, noise=Noise([0]))
    torch.testing.assert_close(found, plain, atol=1e-13, rtol=1e-13)


def test_invalid_windows_and_lengths_are_rejected():
    for total, length, overlap in ((10, 4, 4), (10, 0, 0), (0, 4, 1), (10, 4, -1)):
        with pytest.raises(BadRequest, match="windows"):
            windows(total, length, overlap)
    with pytest.raises(BadRequest, match="weights"):
        blend([[0, 1]], "gaussian")
    with pytest.raises(BadRequest, match="11 frames; expected 12"):
        Windowed(lambda frames: mixing, 12, 8, 2)(video(11), LEVEL)


# ---------------------------------------------------------------------------------------- uniform


def starts_of(spans):
    return [window[0] for window in spans]


def test_uniform_looped_windows_start_where_published():
    """AnimateDiff's schedule for 32 frames, windows of 16, overlap 4 (facts of the family, section 5.9)."""
    assert starts_of(uniform_windows(32, 16, 4, 0, looped=True)) == [0, 12, 24]
    assert starts_of(uniform_windows(32, 16, 4, 1, looped=True)) == [16, 28, 8]
    assert uniform_windows(32, 16, 4, 0, looped=True)[2] == [*range(24, 32), *range(8)]


@pytest.mark.parametrize("looped", [False, True])
def test_uniform_windows_cover_every_frame_at_every_step_and_move(looped):
    for total in (17, 20, 32, 45, 64):
        placed = [uniform_windows(total, 16, 4, step, looped) for step in range(9)]
        for spans in placed:
            assert {frame for window in spans for frame in window} == set(range(total)), total
            assert all(len(window) == 16 for window in spans)
        assert any(spans != placed[0] for spans in placed[1:]) or total == 17
        if not looped:
            assert all(window == sorted(window) for spans in placed for window in spans)
    assert uniform_windows(12, 16, 4, 3, looped) == [list(range(12))]


def test_a_per_frame_denoiser_is_exact_with_uniform_windows():
    seen = []

    def make(frames):
        def denoise(z, level):
            seen.append(frames[0])
            return 2 * z

        return denoise

    moving = Windowed(make, 32, 16, 4, uniform=True)
    z, levels = video(32), spaced(CosineLogSNR(), 3)
    for i in range(3):
        assert torch.allclose(moving(z, levels[i]), 2 * z, atol=1e-6)
        first = len(seen)
        moving(z, levels[i])  # a second call at the same level (Heun) uses the same windows
        assert seen[first:] == seen[first - (len(seen) - first) : first]
    assert seen[:3] != seen[-3:]


def test_strided_windows_start_where_published():
    """AnimateDiff-Evolved's context stride 2 for 64/16/4 adds windows of every second frame."""
    spans = uniform_windows(64, 16, 4, 0, looped=True, stride=2)
    plain = [w for w in spans if w[1] - w[0] == 1]
    assert starts_of(plain) == [0, 12, 24, 36, 48, 60]
    assert [w for w in spans if w not in plain] == [
        [*range(0, 32, 2)],
        [*range(28, 60, 2)],
        [*range(56, 64, 2), *range(0, 24, 2)],
    ]
    assert starts_of(uniform_windows(64, 16, 4, 1, looped=True, stride=2))[-3:] == [33, 61, 25]


@pytest.mark.parametrize("looped", [False, True])
def test_strided_windows_cover_the_clip_without_duplicate_frames(looped):
    for total, stride in ((20, 3), (33, 2), (48, 3), (64, 4)):
        for step in range(5):
            spans = uniform_windows(total, 16, 4, step, looped, stride)
            assert {frame for window in spans for frame in window} == set(range(total))
            assert all(len(set(window)) == 16 for window in spans)
            assert looped or all(window == sorted(window) for window in spans)


def test_uniform_windows_keep_only_the_current_denoisers():
    moving = Windowed(lambda frames: lambda z, level: z, 40, 16, 4, uniform=True)
    levels = spaced(CosineLogSNR(), 6)
    for i in range(6):
        moving(video(40), levels[i])
        assert len(moving._denoisers) == len(moving._parts) <= 5


# ------------------------------------------------------------------------------------------- views


def test_views_are_windows_with_weights_and_empty_for_a_single_window():
    spans = attention_windows(20, 8, 4, "pyramid")
    assert [view.frames for view in spans] == windows(20, 8, 4)
    assert all(torch.equal(v.weight_T, w) for v, w in zip(spans, blend(windows(20, 8, 4), "pyramid"), strict=True))
    assert attention_windows(8, 8, 4, "pyramid") == ()


def test_window_sizes_are_latent_frames_with_more_overlap_in_attention():
    plain = Lattice()
    assert window_sizes(Request(window=16), plain) == (16, 4)
    assert window_sizes(Request(window=16, window_in="attention"), plain) == (16, 12)
    assert window_sizes(Request(window=16, overlap=3), plain) == (16, 3)
    assert window_sizes(Request(window=17, overlap=8), Lattice(LatentGrid(FrameGrid(4, causal=True), (8, 8)))) == (
        5,
        2,
    )


def test_further_channels_of_a_denoiser_are_averaged_too():
    z = video(10)
    windowed = Windowed(lambda frames: lambda z, level: torch.cat([mixing(z, level), 2 * z], 1), 10, 4, 2)
    plain = Windowed(lambda frames: mixing, 10, 4, 2)
    found = windowed(z, LEVEL)
    assert torch.equal(found[:, :2], plain(z, LEVEL))
    torch.testing.assert_close(found[:, 2:], 2 * z)
