from __future__ import annotations

import builtins
import json
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.nn import functional

from kinema.evaluation import metrics
from kinema.evaluation.metrics import (
    Protocol,
    distribution_scores,
    dynamic_degree,
    flickering,
    frechet_distance,
    high_frequency_ratio,
    jerk,
    kernel_distance,
    luma_second_difference,
    psnr,
    sharpness,
    ssim,
)
from kinema.schema import BadRequest

Corrupt = Callable[[torch.Tensor], torch.Tensor]


def texture(frames: int = 10, side: int = 64, speed: float = 0.8) -> torch.Tensor:
    """A band-limited texture that drifts by exactly ``speed`` pixels per frame (a phase shift per frequency)."""
    noise = torch.randn(3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fy, fx = torch.fft.fftfreq(side).double()[:, None], torch.fft.fftfreq(side).double()[None]
    spectrum = torch.fft.fft2(noise) * torch.exp(-((fy**2 + fx**2) / (2 * 0.06**2)))
    moved = [spectrum * torch.exp(-2j * math.pi * (fx * speed * t + fy * 0.4 * speed * t)) for t in range(frames)]
    video = torch.fft.ifft2(torch.stack(moved, 1)).real
    return (0.5 * video / video.std()).clamp(-1, 1)[None].float()


def shifted(video: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Every frame shifted by its own (x, y) offset in pixels, edges replicated."""
    side = video.shape[-1]
    grid = functional.affine_grid(torch.eye(2, 3).expand(len(offsets), 2, 3), (len(offsets), 3, side, side), False)
    frames = video[0].transpose(0, 1)
    moved = functional.grid_sample(frames, grid + 2 * offsets[:, None, None] / side, "bicubic", "border", False)
    return moved.transpose(0, 1)[None].clamp(-1, 1)


def flicker(video: torch.Tensor) -> torch.Tensor:
    gain = 1 + 0.04 * torch.randn(video.shape[2], generator=torch.Generator().manual_seed(1))
    return (((video + 1) * gain[:, None, None]) - 1).clamp(-1, 1)


def jitter(video: torch.Tensor) -> torch.Tensor:
    return shifted(video, 1.5 * torch.randn(video.shape[2], 2, generator=torch.Generator().manual_seed(2)))


def swap(video: torch.Tensor) -> torch.Tensor:
    order = list(range(video.shape[2]))
    order[4], order[5] = order[5], order[4]
    order[8], order[9] = order[9], order[8]
    return video[:, :, order]


def freeze(video: torch.Tensor) -> torch.Tensor:
    return video[:, :, [t - t % 2 for t in range(video.shape[2])]]


def blur(video: torch.Tensor) -> torch.Tensor:
    taps = torch.exp(-(torch.arange(-5.0, 6) ** 2) / (2 * 1.5**2))
    kernel = (taps[:, None] * taps / taps.sum() ** 2).expand(3, 1, 11, 11)
    frames = functional.pad(video[0].transpose(0, 1), (5, 5, 5, 5), "replicate")
    return functional.conv2d(frames, kernel, groups=3).transpose(0, 1)[None]


def temporal_measures(video: torch.Tensor) -> dict[str, torch.Tensor]:
    """All temporal metrics of each clip, by name."""
    measures = (jerk, metrics.high_frequency_ratio, metrics.interpolation_residual, metrics.luma_second_difference,
                metrics.warp_error, flickering, dynamic_degree, sharpness)  # fmt: skip
    return {measure.__name__: measure(video) for measure in measures}


CORRUPTIONS = {"flicker": flicker, "jitter": jitter, "swap": swap, "freeze": freeze, "blur": blur, "clean": lambda v: v}


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, float]]:
    pytest.importorskip("cv2")
    clean = texture()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "FLOW_SIDE", 128)  # half the side is a quarter of the time
        measured_values = {name: temporal_measures(corrupt(clean)) for name, corrupt in CORRUPTIONS.items()}
    # Flickering is 1 − the mean change; compare the change, which rises with a corruption.
    return {
        name: {k: float(1 - v if k == "flickering" else v) for k, v in values.items()}
        for name, values in measured_values.items()
    }


RAISED = {
    "flicker": [
        "flickering",
        "warp_error",
        "jerk",
        "high_frequency_ratio",
        "interpolation_residual",
        "luma_second_difference",
    ],
    "jitter": ["flickering", "jerk", "high_frequency_ratio", "interpolation_residual"],
    "swap": ["flickering", "warp_error", "jerk", "high_frequency_ratio", "interpolation_residual"],
    "freeze": ["jerk", "high_frequency_ratio", "interpolation_residual"],
}


@pytest.mark.parametrize(("corruption", "measure"), [(c, m) for c, names in RAISED.items() for m in names])
def test_a_corruption_raises_the_metrics_that_detect_it(
    measured: dict[str, dict[str, float]], corruption: str, measure: str
) -> None:
    assert measured[corruption][measure] > 1.02 * measured["clean"][measure]


@pytest.mark.parametrize(
    "measure", ["flickering", "warp_error", "jerk", "high_frequency_ratio", "interpolation_residual"]
)
def test_blur_raises_none_of_the_metrics(measured: dict[str, dict[str, float]], measure: str) -> None:
    assert measured["blur"][measure] <= 1.02 * measured["clean"][measure]


@pytest.mark.parametrize("measure", ["flickering", "warp_error"])
def test_frozen_frames_are_rewarded_by_flickering_and_warp_error(
    measured: dict[str, dict[str, float]], measure: str
) -> None:
    assert measured["freeze"][measure] < measured["clean"][measure]


def test_blur_lowers_sharpness_and_freezing_does_not(measured: dict[str, dict[str, float]]) -> None:
    assert measured["blur"]["sharpness"] < 0.5 * measured["clean"]["sharpness"]
    assert measured["freeze"]["sharpness"] == pytest.approx(measured["clean"]["sharpness"], rel=0.05)


def test_brightness_flicker_multiplies_the_luma_difference(measured: dict[str, dict[str, float]]) -> None:
    assert measured["flicker"]["luma_second_difference"] > 10 * measured["clean"]["luma_second_difference"]


def test_dynamic_degree_is_the_speed_in_pixels_at_a_side_of_256() -> None:
    pytest.importorskip("cv2")
    for speed in (0.5, 1.5):
        expected = speed * math.hypot(1, 0.4) * 256 / 64
        assert dynamic_degree(texture(4, speed=speed)).item() == pytest.approx(expected, rel=0.25)
    # Three times the frames per second is three times the speed for the same change between frames.
    assert dynamic_degree(texture(3), fps=24).item() == pytest.approx(3 * dynamic_degree(texture(3)).item())


def test_a_still_clip_has_no_motion_and_no_flicker(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2")
    monkeypatch.setattr(metrics, "FLOW_SIDE", 128)
    still = texture(1).expand(-1, -1, 8, -1, -1)
    values = {name: float(value) for name, value in temporal_measures(still).items()}
    assert values.pop("sharpness") > 0
    assert values.pop("flickering") == 1
    assert values.pop("warp_error") < 1e-3
    assert values == pytest.approx(dict.fromkeys(values, 0.0), abs=1e-3)


def test_every_clip_of_a_batch_is_measured_separately(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2")
    monkeypatch.setattr(metrics, "FLOW_SIDE", 64)
    clips = [texture(5, 32), flicker(texture(5, 32)), texture(5, 32, speed=0.2)]
    together = temporal_measures(torch.cat(clips))
    for index, clip in enumerate(clips):
        for name, value in temporal_measures(clip).items():
            assert together[name].dtype == torch.float64
            assert float(together[name][index]) == pytest.approx(float(value), rel=1e-9), name


def test_closed_forms_of_the_temporal_metrics() -> None:
    ramp = torch.linspace(-1, 1, 5).view(1, 1, 5, 1, 1).expand(1, 3, 5, 16, 16)
    assert jerk(ramp).item() == pytest.approx(0, abs=1e-6)
    assert flickering(ramp).item() == pytest.approx(1 - 0.25)
    blink = torch.tensor([-1.0, 1.0] * 8).view(1, 1, 16, 1, 1).expand(1, 3, 16, 16, 16)
    assert jerk(blink).item() == pytest.approx(2)
    assert high_frequency_ratio(blink).item() > 0.99
    assert luma_second_difference(blink).item() == pytest.approx(2)
    slow = torch.sin(torch.arange(16) * 2 * math.pi / 16).view(1, 1, 16, 1, 1).expand(1, 3, 16, 16, 16)
    assert high_frequency_ratio(slow).item() < 0.01
    assert sharpness(ramp).item() == pytest.approx(0, abs=1e-9)


def test_a_clip_too_short_or_of_another_shape_is_refused() -> None:
    for measure, frames in ((flickering, 1), (jerk, 2), (high_frequency_ratio, 3), (luma_second_difference, 2)):
        with pytest.raises(BadRequest, match=f"the clip has {frames}"):
            measure(torch.zeros(1, 3, frames, 8, 8))
    with pytest.raises(BadRequest, match="B×3×T×H×W"):
        jerk(torch.zeros(3, 8, 8, 8))


def test_without_opencv_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_cv2(name: str, *args: object) -> object:
        if name == "cv2":
            raise ImportError(name)
        return real(name, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", no_cv2)
    with pytest.raises(BadRequest, match=r"pip install 'kinema\[eval\]'"):
        metrics.warp_error(texture(2))


# ------------------------------------------------------------------------------- paired metrics


def test_psnr_has_its_closed_form() -> None:
    clean = torch.zeros(2, 3, 2, 16, 16)
    noisy = clean.clone()
    noisy[1] += 0.2
    assert psnr(noisy, clean)[0] == math.inf
    assert psnr(noisy, clean)[1].item() == pytest.approx(20)


def test_ssim_is_one_for_equal_clips_and_has_its_closed_form_for_constant_ones() -> None:
    clip = texture(2, 32)
    assert ssim(clip, clip).item() == pytest.approx(1)
    a, b = torch.full((1, 3, 1, 12, 12), 0.0), torch.full((1, 3, 1, 12, 12), 0.5)
    expected = (2 * 0.5 * 0.75 + 1e-4) / (0.5**2 + 0.75**2 + 1e-4)
    assert ssim(a, b).item() == pytest.approx(expected)
    noisy = clip + 0.2 * torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
    assert ssim(noisy, clip).item() < 0.95
    assert ssim(-clip, clip).item() < 0


def test_ssim_agrees_with_its_definition_at_one_window() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(1, 3, 1, 11, 11, generator=generator, dtype=torch.float64) for _ in range(2))
    taps = torch.exp(-((torch.arange(11).double() - 5) ** 2) / 4.5)
    weights = taps[:, None] * taps
    weights /= weights.sum()
    values = []
    for c in range(3):
        x, y = a[0, c, 0], b[0, c, 0]
        mx, my = (weights * x).sum(), (weights * y).sum()
        vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
        cov = (weights * (x - mx) * (y - my)).sum()
        values.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    assert ssim(2 * a - 1, 2 * b - 1).item() == pytest.approx(float(sum(values) / 3), rel=1e-9)


def test_paired_metrics_refuse_different_shapes_and_small_frames() -> None:
    with pytest.raises(BadRequest, match="equal shapes"):
        psnr(torch.zeros(1, 3, 2, 16, 16), torch.zeros(1, 3, 1, 16, 16))
    with pytest.raises(BadRequest, match="at least 11×11"):
        ssim(torch.zeros(1, 3, 1, 8, 16), torch.zeros(1, 3, 1, 8, 16))


# ------------------------------------------------------------------------------- distributions


def gaussian(count: int, mean: torch.Tensor, root: torch.Tensor, seed: int) -> torch.Tensor:
    """``count`` samples with mean exactly ``mean`` and covariance exactly ``root @ root.T``."""
    z = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T))).T
    return z @ root.T + mean


def test_frechet_has_its_closed_form_for_gaussians_that_commute() -> None:
    m1, m2 = torch.tensor([0.0, 1, 2], dtype=torch.float64), torch.tensor([1.0, 1, 0], dtype=torch.float64)
    s1, s2 = torch.tensor([1.0, 2, 3], dtype=torch.float64), torch.tensor([2.0, 1, 0.5], dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    a, b = gaussian(64, m1, turn @ s1.diag(), 0), gaussian(50, m2, turn @ s2.diag(), 1)
    assert frechet_distance(a, b) == pytest.approx(float((m1 - m2).square().sum() + (s1 - s2).square().sum()), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_agrees_with_the_matrix_root_for_gaussians_that_do_not_commute() -> None:
    scipy = pytest.importorskip("scipy.linalg")
    roots = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    a, b = (gaussian(40, torch.zeros(4, dtype=torch.float64), root, i) for i, root in enumerate(roots))
    s1, s2 = (torch.cov(x.T) for x in (a, b))
    root = torch.as_tensor(scipy.sqrtm((s1 @ s2).numpy())).real
    assert frechet_distance(a, b) == pytest.approx(float((s1 + s2 - 2 * root).trace()), rel=1e-8)


def test_frechet_of_fewer_clips_than_features_stays_finite_and_not_negative() -> None:
    a, b = (torch.randn(5, 20, generator=torch.Generator().manual_seed(i)) for i in range(2))
    assert 0 < frechet_distance(a, b) < math.inf


def test_frechet_of_repeated_features_is_that_of_the_features_as_often() -> None:
    # Covariances are singular, and the eigenvalues of their product do not converge.
    a, b = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert frechet_distance(a.repeat(1, 16), b.repeat(1, 16)) == pytest.approx(16 * frechet_distance(a, b), rel=1e-6)


def test_the_kernel_distance_is_unbiased_at_small_n_where_frechet_is_not() -> None:
    def samples(seed: int, shift: float = 0.0) -> torch.Tensor:
        return torch.randn(24, 16, generator=torch.Generator().manual_seed(seed)) + shift

    equal = torch.tensor([kernel_distance(samples(2 * i), samples(2 * i + 1)) for i in range(200)])
    error = equal.std() / len(equal) ** 0.5
    assert equal.mean().abs() < 3 * error
    assert (equal < 0).any()
    moved = torch.tensor([kernel_distance(samples(2 * i), samples(2 * i + 1, 0.5)) for i in range(20)])
    assert moved.mean() > 20 * error
    frechet = torch.tensor([frechet_distance(samples(2 * i), samples(2 * i + 1)) for i in range(10)])
    assert frechet.mean() > 5


def test_the_kernel_distance_has_its_closed_form_for_two_points_each() -> None:
    a, b = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [3.0]])
    cross = (1 + 64 + 1 + 343) / 4
    assert kernel_distance(a, b) == pytest.approx(27 + 1 - 2 * cross)


PROTOCOL = Protocol(
    extractor="mean colour", weights="none", decoder="PyAV", resize="none", frames=2, fps=8, seed=0, count=0
)


def test_a_score_has_its_protocol_and_prints_its_sample_size() -> None:
    def clips(count: int) -> Iterator[torch.Tensor]:
        for i in range(0, count, 4):
            yield torch.randn(4, 3, 2, 8, 8, generator=torch.Generator().manual_seed(i))

    fvd, kvd = distribution_scores(clips(8), clips(12), lambda v: v.mean((2, 3, 4)), PROTOCOL)
    assert (fvd.name, kvd.name) == ("FVD", "KVD")
    for score in (fvd, kvd):
        assert (score.protocol.count, score.protocol.reference_count) == (8, 12)
        assert "N = 8 against 12" in str(score)
        assert json.loads(json.dumps(score.record()))["protocol"]["extractor"] == "mean colour"


def test_clips_that_violate_the_protocol_and_empty_sets_are_refused() -> None:
    with pytest.raises(BadRequest, match="a clip has 3 frames; the protocol requires 2"):
        distribution_scores([torch.zeros(4, 3, 3, 8, 8)], [], lambda v: v.mean((2, 3, 4)), PROTOCOL)
    with pytest.raises(BadRequest, match="no clips"):
        distribution_scores([], [], lambda v: v.mean((2, 3, 4)), PROTOCOL)
    with pytest.raises(BadRequest, match="at least 2"):
        kernel_distance(torch.zeros(1, 3), torch.zeros(4, 3))


def test_the_rounding_of_a_still_clips_mean_has_no_high_frequencies() -> None:
    still = torch.rand(1, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 16, -1, -1)
    assert float(metrics.high_frequency_ratio(still)) == 0
    flicker = still.clone()
    flicker[:, :, ::2] += 1e-4
    assert float(metrics.high_frequency_ratio(flicker)) > 0.9
