"""Weights that take turns: the same numbers, and never more of them in memory than said."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kinema import registry
from kinema.memory.offload import LEVELS, WeightOffloader, networks, units
from kinema.system import WeightPolicy

CPU = torch.device("cpu")


class Net(nn.Module):
    def __init__(self, width=4, depth=3):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(width, width), nn.SiLU()) for _ in range(depth)])
        self.register_buffer("shift", torch.ones(width))

    def forward(self, x, order=None):
        x = self.first(x) + self.shift
        for i in order or range(len(self.blocks)):
            x = self.blocks[i](x)
        return x


class Two(nn.Module):
    """Holds two networks; the second is entered by a method."""

    def __init__(self):
        super().__init__()
        self.a, self.b = Net(), Net()

    def encode(self, x):
        return self.b.blocks[0](x)


def turning(model, level, device=CPU):
    blocks = [b for net in networks(model).values() for b in net.blocks]
    rest = {name: p.detach().clone() for name, p in model.named_parameters()}
    turns = WeightOffloader(model, blocks, rest.__getitem__, device, WeightPolicy())
    turns.begin(level)
    return turns


def here(model):
    return {name for name, p in model.named_parameters() if not p.is_meta}


def test_a_model_that_only_holds_networks_has_its_children_for_networks():
    assert set(networks(Two())) == {"a", "b"}
    assert set(networks(Net())) == {""}


@pytest.mark.parametrize("level", LEVELS)
def test_the_numbers_stay_whatever_takes_turns(level):
    torch.manual_seed(0)
    model, x = Two(), torch.randn(2, 4)
    expected = model.b(model.a(x))
    turns = turning(model, level)
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(model.b(model.a(x)), expected)
            assert torch.equal(model.encode(x), Two.encode(model, x))
    turns.close()


def test_networks_take_turns():
    model, x = Two(), torch.randn(2, 4)
    turning(model, "model")
    assert here(model) == set()
    with torch.no_grad():
        model.a(x)
        assert here(model) == {n for n, _ in model.named_parameters() if n.startswith("a.")}
        model.encode(x)
        assert here(model) == {n for n, _ in model.named_parameters() if n.startswith("b.")}


@pytest.mark.parametrize("level", ["block", "sequential"])
def test_a_block_is_here_only_while_it_runs(level):
    model = Net()
    turning(model, level)
    seen = []
    for block in model.blocks:
        block[0].register_forward_hook(lambda *_: seen.append(here(model)))
    with torch.no_grad():
        model(torch.randn(2, 4))
    own = {"first.weight", "first.bias"}
    assert seen == [own | {f"blocks.{i}.0.weight", f"blocks.{i}.0.bias"} for i in range(3)]
    assert here(model) == own


def test_a_block_that_fails_leaves_too():
    model = Net()
    turning(model, "sequential")
    with pytest.raises(RuntimeError):
        model.blocks[0](torch.randn(2, 3))
    assert not [name for name in here(model) if name.startswith("blocks")]


def test_the_next_block_is_read_ahead_in_the_order_they_really_run():
    model = Net()
    rest = {name: p.detach().clone() for name, p in model.named_parameters()}
    read = []

    def reading(name):
        read.append(name)
        return rest[name]

    turns = WeightOffloader(model, list(model.blocks), reading, CPU, WeightPolicy())
    turns.begin("block")
    with torch.no_grad():
        model(torch.randn(1, 4), [2, 0, 1])  # learns the order, and reads in vain
        turns._ahead.waiting[1].result()
        read.clear()
        model(torch.randn(1, 4), [2, 0, 1])
        turns._ahead.waiting[1].result()  # the first block of the next call; closing would call it off
    turns.close()
    weights = [name for name in read if name.endswith("weight") and name.startswith("blocks")]
    assert sorted(weights) == ["blocks.0.0.weight", "blocks.1.0.weight", "blocks.2.0.weight"]


def test_a_weight_of_another_shape_is_refused():
    model = Net()
    turns = WeightOffloader(model, list(model.blocks), lambda _name: torch.zeros(1), CPU, WeightPolicy())
    with pytest.raises(RuntimeError, match="waits as"):
        turns.begin("none")


def test_precision_and_order_in_memory_are_those_of_the_network():
    conv = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    rest = {name: p.detach().half().contiguous() for name, p in conv.named_parameters()}
    turns = WeightOffloader(conv, [conv[0]], rest.__getitem__, CPU, WeightPolicy())
    turns.begin("sequential")
    seen = []
    conv[0].register_forward_hook(lambda m, *_: seen.append(m.weight))
    with torch.no_grad():
        conv(torch.randn(1, 3, 8, 8))
    assert seen[0].dtype == torch.float32
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_gradients_flow_through_blocks_that_come_and_go():
    """Reconstruction guidance differentiates the denoiser."""
    torch.manual_seed(0)
    model, x = Net(), torch.randn(2, 4, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    turning(model, "block")
    (made,) = torch.autograd.grad(model(x).sum(), x)
    assert torch.equal(made, expected)


def test_any_device_will_do():
    model = Net()
    turning(model, "block", torch.device("meta"))
    with torch.no_grad():
        assert model(torch.empty(2, 4, device="meta")).is_meta


@pytest.mark.parametrize("name", sorted(registry.FAMILIES))
def test_every_family_has_its_weights_in_units(name):
    family = registry.family(name)
    with torch.device("meta"):
        model = family.build(family.presets["tiny"])
    found = units(model, family.blocks(model))
    slots = [slot.name for own, blocks in found.values() for unit in (own, *blocks) for slot in unit.slots]
    assert sorted(slots) == sorted(name for name, _ in model.named_parameters())
    assert any(blocks for _, blocks in found.values())


def test_a_weight_that_waits_says_the_device_it_comes_to():
    """Code that puts inputs where a weight is must not put them where there are no numbers."""
    model = Two()
    turning(model, "model")
    assert all(p.is_meta and p.device == CPU for p in model.parameters())


def test_a_part_deep_inside_may_be_the_first_that_is_called():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Sequential(nn.Linear(4, 4)))

        def forward(self, x):
            return self.net(x)

    model, x = nn.ModuleList([Deep(), Deep()]), torch.randn(2, 4)
    expected = model[0].net[0][0](x)
    rest = {name: p.detach().clone() for name, p in model.named_parameters()}
    WeightOffloader(model, [], rest.__getitem__, CPU, WeightPolicy()).begin("model")
    with torch.no_grad():
        assert torch.equal(model[0].net[0][0](x), expected)


def test_inputs_go_where_a_waiting_weight_goes():
    model = Two()
    turning(model, "model")
    moved = torch.ones(2, dtype=torch.float64).to(model.a.first.weight)
    assert moved.device == CPU
    assert moved.dtype == torch.float32


def test_nothing_is_computed_with_a_weight_that_waits():
    """torch takes tensors without numbers beside others and says nothing."""
    model = Two()
    turning(model, "model")
    with pytest.raises(RuntimeError, match="while they wait"):
        torch.nn.functional.linear(torch.ones(2, 4), model.a.first.weight)
