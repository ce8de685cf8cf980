"""The moving average of the weights, compared with its closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kinema.training.ema import EMA


class Weights(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.w = nn.Parameter(torch.full((3,), float(value)))
        self.register_buffer("count", torch.tensor(0))


def test_average_of_constant_weights_matches_the_closed_form():
    """From 0 towards 1: after n updates 1 - Π d_k, d_k = min(decay, (1 + k) / (10 + k))."""
    model = Weights(0)
    ema = EMA(model, 0.9)
    nn.init.ones_(model.w)
    for _ in range(120):
        ema.update(model)
    left = math.prod(min(0.9, (1 + k) / (10 + k)) for k in range(120))
    assert float(ema.shadow["w"][0]) == pytest.approx(1 - left, abs=1e-6)
    assert ema.updates == 120


def test_average_of_changing_weights_matches_the_recursion():
    model, generator = Weights(0), torch.Generator().manual_seed(0)
    ema, expected = EMA(model, 0.5), torch.zeros(3, dtype=torch.float64)
    for k in range(30):
        with torch.no_grad():
            model.w.copy_(torch.randn(3, generator=generator))
        ema.update(model)
        d = min(0.5, (1 + k) / (10 + k))
        expected = d * expected + (1 - d) * model.w.detach().double()
    torch.testing.assert_close(ema.shadow["w"].double(), expected, atol=1e-6, rtol=1e-6)


def test_counters_are_copied_not_averaged():
    model = Weights(0)
    ema = EMA(model, 0.5)
    model.count += 7
    ema.update(model)
    assert int(ema.shadow["count"]) == 7


def test_applied_uses_the_average_and_restores_the_weights_bit_exactly():
    model = Weights(0)
    ema = EMA(model, 0.5)
    nn.init.constant_(model.w, 0.1)

    def check_and_fail():
        with ema.applied(model):
            assert not model.training
            assert torch.equal(model.w.detach(), torch.zeros(3))
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        check_and_fail()
    assert model.training
    assert torch.equal(model.w.detach(), torch.full((3,), 0.1))
    assert torch.equal(ema.shadow["w"], torch.zeros(3))
