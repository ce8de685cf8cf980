"""Noise per batch item."""

from __future__ import annotations

import pytest
import torch

from kinema.diffusion.noise import Noise


def test_item_i_of_a_batch_equals_its_single_run():
    both, second = Noise([3, 9]), Noise([9])
    z = torch.zeros(2, 3, 4, 5, 6)
    for _ in range(3):
        assert torch.equal(both.like(z)[1:], second.like(z[1:]))


def test_same_seeds_give_the_same_numbers_in_every_precision():
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


def test_a_batch_of_another_size_is_an_error():
    with pytest.raises(ValueError, match="2 seeds"):
        Noise([0, 1]).like(torch.zeros(3, 1))
