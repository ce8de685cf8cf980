"""Running statistics of latents."""

from __future__ import annotations

import torch

from kinema.vae.running import update_statistics

LEVELS = torch.linspace(-3, 3, 8).reshape(8, 1, 1, 1, 1)
LATENTS = 5 + LEVELS + 0.1 * torch.randn(8, 6, 2, 4, 4, generator=torch.Generator().manual_seed(0))
"""Clips that differ more from each other than their own places do."""


def settled(parts: int) -> tuple[torch.Tensor, torch.Tensor]:
    mean, variance = torch.zeros(6), torch.ones(6)
    for _ in range(400):
        for part in LATENTS.chunk(parts):
            update_statistics(mean, variance, part, 1 / parts)
    return mean, variance


def test_they_become_those_of_the_latents() -> None:
    mean, variance = settled(1)
    torch.testing.assert_close(mean, LATENTS.mean((0, 2, 3, 4)), rtol=1e-3, atol=0)
    torch.testing.assert_close(variance, LATENTS.var((0, 2, 3, 4), correction=0), rtol=0.02, atol=0)


def test_a_step_in_parts_counts_what_is_between_the_parts() -> None:
    (mean, variance), whole = settled(8), settled(1)
    torch.testing.assert_close(mean, whole[0], rtol=0, atol=0.05)
    torch.testing.assert_close(variance, whole[1], rtol=0.02, atol=0)


def test_latents_that_are_not_finite_change_nothing() -> None:
    mean, variance = torch.ones(6), torch.full((6,), 2.0)
    update_statistics(mean, variance, torch.full((1, 6, 2, 2, 2), torch.inf), 1.0)
    assert mean.tolist() == [1.0] * 6
    assert variance.tolist() == [2.0] * 6
