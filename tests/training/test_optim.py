"""Muon, the assignment of parameters to optimisers, and the learning rate schedule."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kinema.training import checkpoint, optim
from kinema.training.optim import Muon, orthogonalise

SHAPES = [(32, 32), (24, 64), (64, 40)]


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalised_matrices_have_singular_values_near_one(shape):
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalise(x))
    assert 0.5 < float(values.min()) <= float(values.max()) < 1.25
    assert float(values.mean()) == pytest.approx(0.9, abs=0.15)


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalising_keeps_the_singular_vectors(shape):
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    turned = u.mT @ orthogonalise(x) @ vh.mT
    rest = turned - torch.diag_embed(turned.diagonal(dim1=1, dim2=2))
    assert float(rest.abs().max()) < 1e-9
    assert float(turned.diagonal(dim1=1, dim2=2).min()) > 0


def test_a_fused_matrix_is_orthogonalised_block_by_block():
    x = torch.randn(1, 96, 32, generator=torch.Generator().manual_seed(3))
    blocks = orthogonalise(x).unflatten(1, (3, 32))[0]
    torch.testing.assert_close(blocks, orthogonalise(x[0].unflatten(0, (3, 32))), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", [(48, 48), (32, 64), (96, 32), (16, 8, 3, 3)])
def test_muon_updates_have_a_root_mean_square_of_a_fifth_of_the_learning_rate(shape):
    """The scale of AdamW's updates (arXiv 2502.16982, eq. 4)."""
    p = nn.Parameter(torch.zeros(shape))
    p.grad = torch.randn(shape, generator=torch.Generator().manual_seed(4)) * 1e-4
    Muon([p], lr=0.5).step()
    assert float(p.detach().square().mean().sqrt()) == pytest.approx(0.5 * 0.2, rel=0.25)


def test_weight_decay_is_decoupled_from_the_gradient():
    p = nn.Parameter(torch.ones(8, 8))
    p.grad = torch.zeros(8, 8)
    Muon([p], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(p.detach(), torch.full((8, 8), 0.95), atol=1e-6, rtol=0)


def test_momentum_is_a_nesterov_average_of_gradients():
    """buffer = m·buffer + (1 - m)·g; the update uses m·buffer + (1 - m)·g."""
    generator = torch.Generator().manual_seed(5)
    grads = [torch.randn(8, 8, generator=generator) for _ in range(3)]
    p = nn.Parameter(torch.zeros(8, 8))
    muon = Muon([p], lr=1.0, momentum=0.9)
    buffer = torch.zeros(8, 8)
    for g in grads:
        p.grad = g.clone()
        before = p.detach().clone()
        muon.step()
        buffer = 0.9 * buffer + 0.1 * g
        expected = orthogonalise((0.9 * buffer + 0.1 * g)[None])[0] * 0.2 * 8**0.5
        torch.testing.assert_close(before - p.detach(), expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(muon.state[p]["momentum_buffer"], buffer, atol=1e-6, rtol=1e-5)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Conv2d(8, 8, 3)])


def test_muon_trains_the_blocks_matrices_and_adamw_the_rest():
    model = Small()
    muon, adam = optim.build("muon", model, model.blocks, 1e-3, 0.01)
    matrices = {id(p) for group in muon.param_groups for p in group["params"]}
    assert matrices == {id(model.blocks[0].weight), id(model.blocks[1].weight)}
    others = {id(p) for group in adam.param_groups for p in group["params"]}
    assert matrices.isdisjoint(others)
    assert matrices | others == {id(p) for p in model.parameters()}
    assert [g["share"] for g in adam.param_groups] == [pytest.approx(0.3)]
    assert [type(o).__name__ for o in optim.build("adamw", model, model.blocks, 1e-3, 0.0)] == ["AdamW"]


def test_optimiser_state_round_trips_bit_exactly(tmp_path):
    def steps(model, optimisers, seeds):
        for seed in seeds:
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
            for o in optimisers:
                o.step()

    torch.manual_seed(0)
    one, other = Small(), Small()
    first = optim.build("muon", one, one.blocks, 1e-2, 0.01)
    second = optim.build("muon", other, other.blocks, 1e-2, 0.01)
    emas = [checkpoint.EMA(m, 0.9) for m in (one, other)]
    steps(one, first, (1, 2))
    path = checkpoint.save(tmp_path, checkpoint.State(step=2, seed=3), one, emas[0], first, '{"family": "x"}', 1)
    state = checkpoint.load(path, other, emas[1], second)
    assert (state.step, state.seed) == (2, 3)
    steps(one, first, (3, 4))
    steps(other, second, (3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_rate_warms_up_stays_constant_and_decays_to_zero():
    found = [optim.rate(step, 100, 10, 0.4) for step in range(101)]
    assert found[0] == pytest.approx(0.1)
    assert found[9:61] == [1.0] * 52
    assert found[80] == pytest.approx(0.5)
    assert found[99] == pytest.approx(1 / 40)
    assert found[100] == 0
    assert all(b >= a for a, b in zip(found[:10], found[1:11], strict=True))
    assert all(b <= a for a, b in zip(found[60:-1], found[61:], strict=True))


def test_rate_without_warmup_or_cooldown_is_one_until_the_end():
    assert [optim.rate(step, 4, 0, 0.0) for step in range(4)] == [1, 1, 1, 1]


def test_parameters_outside_blocks_are_trained_by_adamw_alone():
    """As a pocket model's SparseCtrl, whose settings select muon."""
    model = nn.ModuleDict({"block": nn.Linear(4, 4).requires_grad_(False), "outside": nn.Linear(4, 4)})
    (only,) = optim.build("muon", model, [model["block"]], 1e-3, 0.0)
    assert isinstance(only, torch.optim.AdamW)
    assert sum(p.numel() for group in only.param_groups for p in group["params"]) == 20
