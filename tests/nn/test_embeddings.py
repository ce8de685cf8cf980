from __future__ import annotations

import math

import pytest
import torch

from kinema.nn.embeddings import LogSNREmbedding, sinusoidal


def test_sinusoids_match_the_formula() -> None:
    found = sinusoidal(torch.tensor([3.0]), 4, max_period=100.0)[0]
    torch.testing.assert_close(found, torch.tensor([math.cos(3), math.cos(0.3), math.sin(3), math.sin(0.3)]))


def test_an_odd_width_is_rejected() -> None:
    with pytest.raises(ValueError, match="even width"):
        sinusoidal(torch.zeros(1), 3)


def test_log_snr_is_clamped_to_twenty() -> None:
    torch.manual_seed(0)
    embed = LogSNREmbedding(16)
    out = embed(torch.tensor([-69.0, -20.0, 0.0, 20.0, 69.0]))
    assert torch.equal(out[0], out[1])
    assert torch.equal(out[3], out[4])
    assert not torch.allclose(out[1], out[2])


def test_close_levels_are_distinguished_and_leading_axes_kept() -> None:
    torch.manual_seed(0)
    embed = LogSNREmbedding(16, features=32)
    out = embed(torch.linspace(-20, 20, 400).reshape(2, 200))
    assert out.shape == (2, 200, 16)
    assert torch.pdist(out.flatten(0, 1)).min() > 1e-4
