"""Reconstruction guidance against closed forms: linear denoisers and the Gaussian oracle."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kinema.diffusion.guidance import Guided, Measurement, Reconstruction, classifier_free
from kinema.diffusion.noise import Noise
from kinema.diffusion.overwrite import KnownRegion, Overwrite
from kinema.diffusion.samplers import SAMPLERS
from kinema.diffusion.schedules import CosineLogSNR, spaced, variance_preserving
from kinema.schema import BadRequest

LEVEL = variance_preserving(torch.tensor([0.3], dtype=torch.float64))
FRAMES, GIVEN = 6, 2


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def never(z):
    raise AssertionError("what has no weight must not be measured")


def flat(video):
    return video.flatten(1).T


def linear(matrix, shape):
    """x0 = K z on all pixels of a clip."""
    return lambda z, level: (z.flatten(1) @ matrix.T).reshape(-1, *shape[1:])


def first_frames(shape, count=GIVEN):
    mask = torch.zeros(1, 1, *shape[2:], dtype=torch.float64)
    mask[:, :, :count] = 1
    return mask


SHAPE = (1, 2, 4, 3, 3)
SIZE = 72


def steered(denoise, given, mask, weight):
    """Reconstruction of a given piece alone."""
    return Reconstruction(denoise, [Measurement.of_piece(given, mask, weight)], mask)


def test_temporal_guidance_of_a_linear_denoiser_is_exact():
    """x0~^b = x0^b + w alpha K_ab^T (x^a - x0^a), and x0^a is left alone."""
    matrix, z, given, weight = random(SIZE, SIZE) / 9, random(*SHAPE, seed=1), random(*SHAPE, seed=2), 3.5
    mask = first_frames(SHAPE)
    known = mask.expand(SHAPE).flatten() > 0
    denoise = linear(matrix, SHAPE)
    found = steered(denoise, given, mask, weight)(z, LEVEL)
    x0 = flat(denoise(z, LEVEL))
    expected = x0.clone()
    k_ab = matrix[known][:, ~known]
    expected[~known] += weight * LEVEL.alpha * k_ab.T @ (flat(given) - x0)[known]
    torch.testing.assert_close(flat(found), expected, atol=1e-13, rtol=1e-13)
    assert torch.equal(flat(found)[known], x0[known])


def pool(x0):
    return nn.functional.avg_pool3d(x0, (1, 3, 3))


def pool_matrix():
    return torch.stack([pool(e.reshape(SHAPE)).flatten() for e in torch.eye(SIZE, dtype=torch.float64)], 1)


def test_super_resolution_guidance_of_a_linear_denoiser_is_exact_on_all_pixels():
    """x0~ = x0 + w alpha (D K)^T (low - D x0)."""
    matrix, z, weight = random(SIZE, SIZE) / 9, random(*SHAPE, seed=1), 3.5
    low = random(1, 2, 4, 1, 1, seed=3)
    denoise, down = linear(matrix, SHAPE), pool_matrix()
    found = Reconstruction(denoise, [Measurement(pool, low, weight)])(z, LEVEL)
    x0 = flat(denoise(z, LEVEL))
    expected = x0 + weight * LEVEL.alpha * (down @ matrix).T @ (flat(low) - down @ x0)
    torch.testing.assert_close(flat(found), expected, atol=1e-13, rtol=1e-13)


def test_both_guidances_at_once_add_up_on_the_unknown_pixels():
    matrix, z, given = random(SIZE, SIZE) / 9, random(*SHAPE, seed=1), random(*SHAPE, seed=2)
    low, mask, denoise = random(1, 2, 4, 1, 1, seed=3), first_frames(SHAPE), linear(matrix, SHAPE)
    x0 = denoise(z, LEVEL)
    frames, small = Measurement.of_piece(given, mask, 2.0), Measurement(pool, low, 2.0)
    temporal = Reconstruction(denoise, [frames])(z, LEVEL) - x0
    spatial = Reconstruction(denoise, [small])(z, LEVEL) - x0
    both = Reconstruction(denoise, [frames, small], mask)(z, LEVEL) - x0
    torch.testing.assert_close(both, (temporal + spatial) * (1 - mask), atol=1e-13, rtol=1e-13)


def test_weight_0_is_the_denoiser_alone():
    matrix, given, mask = random(SIZE, SIZE) / 9, random(*SHAPE, seed=2), first_frames(SHAPE)
    denoise, z = linear(matrix, SHAPE), random(*SHAPE, seed=1)
    assert torch.equal(steered(denoise, given, mask, 0.0)(z, LEVEL), denoise(z, LEVEL))
    assert not torch.equal(steered(denoise, given, mask, 1.0)(z, LEVEL), denoise(z, LEVEL))


def test_a_denoiser_that_never_mixes_frames_is_not_changed():
    mask, given, z = first_frames(SHAPE), random(*SHAPE, seed=2), random(*SHAPE, seed=1)

    def per_frame(z, level):
        return z.sin() + z.mean((1, 3, 4), keepdim=True)

    assert torch.equal(steered(per_frame, given, mask, 50.0)(z, LEVEL), per_frame(z, LEVEL))


def test_guidance_runs_through_a_network_under_no_grad_and_inference_mode():
    torch.manual_seed(0)
    network = nn.Conv3d(2, 2, (3, 1, 1), padding=(1, 0, 0)).double()
    guide = steered(lambda z, level: network(z), random(*SHAPE), first_frames(SHAPE), 2.0)
    expected = guide(random(*SHAPE, seed=1), LEVEL)
    assert not expected.requires_grad
    assert network.weight.grad is None
    with torch.no_grad():
        assert torch.equal(guide(random(*SHAPE, seed=1), LEVEL), expected)
    with torch.inference_mode():
        assert torch.equal(guide(random(*SHAPE, seed=1), LEVEL), expected)


def test_guidance_passes_through_classifier_free_guidance():
    """Reconstruction guidance applies to the guided denoiser, not to one branch."""
    matrices = random(2, SIZE, SIZE) / 9
    halves = [linear(matrix, SHAPE) for matrix in matrices]
    guided = Guided(dict(zip(("positive", "negative"), halves, strict=True)), classifier_free(3.0))
    mask, given, z = first_frames(SHAPE), random(*SHAPE, seed=2), random(*SHAPE, seed=1)
    found = steered(guided, given, mask, 2.0)(z, LEVEL)
    whole = linear(matrices[1] + 3.0 * (matrices[0] - matrices[1]), SHAPE)
    torch.testing.assert_close(found, steered(whole, given, mask, 2.0)(z, LEVEL))


def test_measurements_with_different_weights_add_up():
    """x0~ = x0 + alpha Σ w_k (A_k K)^T (y_k - A_k x0), on the free pixels."""
    matrix, z = random(SIZE, SIZE) / 9, random(*SHAPE, seed=1)
    denoise = linear(matrix, SHAPE)
    operators, mask = random(2, 5, SIZE, seed=6) / 9, first_frames(SHAPE)
    targets, given = random(2, 5, seed=7), random(*SHAPE, seed=2)
    weights = (0.7, 12.0, 3.5)
    measured = [
        Measurement(lambda x0, a=a: x0.flatten() @ a.T, y, w)
        for a, y, w in zip(operators, targets, weights, strict=False)
    ]
    found = Reconstruction(denoise, [*measured, Measurement.of_piece(given, mask, weights[2])], mask)(z, LEVEL)
    x0 = flat(denoise(z, LEVEL))
    known = torch.diag(mask.expand(SHAPE).flatten())
    pulls = [a.T @ (y[:, None] - a @ x0) for a, y in zip(operators, targets, strict=True)]
    pulls.append(known @ (flat(given) - x0))
    moved = LEVEL.alpha * sum(w * matrix.T @ pull for w, pull in zip(weights, pulls, strict=True))
    torch.testing.assert_close(flat(found), x0 + moved * flat(1 - mask.expand(SHAPE)), atol=1e-12, rtol=1e-12)


def test_measurements_without_weight_are_skipped():
    denoise, given, mask = linear(random(SIZE, SIZE) / 9, SHAPE), random(*SHAPE, seed=2), first_frames(SHAPE)
    z, unmeasured = random(*SHAPE, seed=1), Measurement(never, given, 0.0)
    alone = steered(denoise, given, mask, 2.0)(z, LEVEL)
    piece = Measurement.of_piece(given, mask, 2.0)
    assert torch.equal(Reconstruction(denoise, [unmeasured, piece], mask)(z, LEVEL), alone)
    assert torch.equal(Reconstruction(denoise, [unmeasured], mask)(z, LEVEL), denoise(z, LEVEL))
    assert torch.equal(Reconstruction(denoise, [], mask)(z, LEVEL), denoise(z, LEVEL))


def test_a_target_of_the_wrong_shape_is_rejected():
    measured = Measurement(pool, random(1, 2, 4, 1, 2), 1.0)
    with pytest.raises(
        BadRequest, match=r"the target of a measurement has shape \(1, 2, 4, 1, 2\); expected .*\(1, 2, 4, 1, 1\)"
    ):
        Reconstruction(linear(random(SIZE, SIZE), SHAPE), [measured])(random(*SHAPE), LEVEL)


# ------------------------------------------------------------------------------ the Gaussian oracle


def gaussian_covariance():
    """Covariance of one-pixel frames correlated over time."""
    index = torch.arange(FRAMES, dtype=torch.float64)
    return torch.exp(-((index - index[:, None]) ** 2) / 8) + 1e-3 * torch.eye(FRAMES, dtype=torch.float64)


def posterior_gain(covariance, level):
    """K with E[x | z] = K z."""
    noisy = level.alpha**2 * covariance + level.sigma**2 * torch.eye(FRAMES, dtype=torch.float64)
    return level.alpha * covariance @ torch.linalg.inv(noisy)


def given_both(covariance, level, z, x):
    """E[x^b | z, x^a] by conditioning the joint Gaussian of (x^b, x^a, z)."""
    a, eye = slice(0, GIVEN), torch.eye(FRAMES, dtype=torch.float64)
    cross = torch.cat([covariance[:, a], level.alpha * covariance], 1)
    seen = torch.cat(
        [
            torch.cat([covariance[a, a], level.alpha * covariance[a]], 1),
            torch.cat([level.alpha * covariance[:, a], level.alpha**2 * covariance + level.sigma**2 * eye], 1),
        ]
    )
    return (cross @ torch.linalg.solve(seen, torch.cat([x[a], z])))[GIVEN:]


@pytest.mark.parametrize("log_snr", [-4.0, 0.0, 3.0])
def test_the_exact_score_gives_the_exact_conditional_mean(log_snr):
    """E[x^b | z, x^a] = x0^b + (sigma²/alpha) grad_{z^b} log q(x^a | z): the term replacement lacks (VDM, 3.1)."""
    level = variance_preserving(torch.tensor([log_snr], dtype=torch.float64))
    covariance, a = gaussian_covariance(), slice(0, GIVEN)
    x, z = random(FRAMES, 1, seed=4), random(FRAMES, 1, seed=5)
    gain = posterior_gain(covariance, level)
    left = covariance - level.alpha * gain @ covariance  # covariance of x given z
    z_in = z.clone().requires_grad_(True)
    miss = x[a] - gain[a] @ z_in
    log_q = -(miss.T @ torch.linalg.solve(left[a, a], miss)) / 2
    (grad,) = torch.autograd.grad(log_q.sum(), z_in)
    found = (gain @ z + level.sigma**2 / level.alpha * grad)[GIVEN:]
    torch.testing.assert_close(found, given_both(covariance, level, z, x), atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("log_snr", [-1.0, 0.0, 1.0])
def test_reconstruction_guidance_comes_closer_to_the_conditional_mean_than_replacement(log_snr):
    level = variance_preserving(torch.tensor([log_snr], dtype=torch.float64))
    covariance = gaussian_covariance()
    draws = 400
    x = torch.linalg.cholesky(covariance) @ random(FRAMES, draws, seed=6)
    z = level.alpha * x + level.sigma * random(FRAMES, draws, seed=7)
    gain = posterior_gain(covariance, level)

    def clip(values):
        return values.T.reshape(draws, 1, FRAMES, 1, 1)

    def denoise(z, _):
        return (z.flatten(1) @ gain.T).reshape(-1, 1, FRAMES, 1, 1)

    truth = given_both(covariance, level, z, x).T.reshape(draws, 1, -1, 1, 1)
    mask = first_frames((draws, 1, FRAMES, 1, 1))
    errors = [
        float((steered(denoise, clip(x), mask, w)(clip(z), level.batch(draws))[:, :, GIVEN:] - truth).square().mean())
        for w in (0.0, 1.0)
    ]
    assert errors[1] < 0.75 * errors[0], errors


@pytest.mark.parametrize("region_noise", ["fresh", "posterior"])
def test_extensions_are_consistent_with_reconstruction_but_not_with_replacement_alone(region_noise):
    """VDM's claim over whole runs: squared Mahalanobis distance to p(x^b | x^a), 1 per frame if exact."""
    covariance, draws = gaussian_covariance(), 300
    x = (torch.linalg.cholesky(covariance) @ random(FRAMES, draws, seed=3)).T.reshape(draws, 1, FRAMES, 1, 1)
    mask = first_frames(tuple(x.shape))
    regress = covariance[GIVEN:, :GIVEN] @ torch.linalg.inv(covariance[:GIVEN, :GIVEN])
    metric = torch.linalg.inv(covariance[GIVEN:, GIVEN:] - regress @ covariance[:GIVEN, GIVEN:])

    def denoise(z, level):
        return (z.flatten(1) @ posterior_gain(covariance, level[0]).T).reshape(z.shape)

    def distance(weight):
        noise, levels = Noise(range(draws)), spaced(CosineLogSNR(), 20)
        z = noise.normal(x.shape[1:]).double()
        over = Overwrite([KnownRegion(x, mask, None, region_noise)], levels, Noise(range(draws, 2 * draws)), z)
        held = over.around(steered(denoise, x, mask, weight))
        run = {"noise": noise, "gamma": 0.0, "state": over.run()}
        found = SAMPLERS["vdm-ancestral"](held, z, levels, **run).flatten(1)
        miss = found[:, GIVEN:] - x.flatten(1)[:, :GIVEN] @ regress.T
        return float(((miss @ metric) * miss).sum(1).mean()) / (FRAMES - GIVEN)

    assert distance(0.0) > 1.8
    assert 0.7 < distance(2.0) < 1.2


def test_further_channels_of_a_denoiser_are_handed_on():
    matrix, z, given = random(SIZE, SIZE) / 9, random(*SHAPE, seed=1), random(*SHAPE, seed=2)
    denoise, mask = linear(matrix, SHAPE), first_frames(SHAPE)
    found = steered(lambda z, level: torch.cat([denoise(z, level), 2 * z], 1), given, mask, 3.5)(z, LEVEL)
    torch.testing.assert_close(found[:, : SHAPE[1]], steered(denoise, given, mask, 3.5)(z, LEVEL))
    assert torch.equal(found[:, SHAPE[1] :], 2 * z)
