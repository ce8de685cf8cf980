"""Weight offloading: outputs are unchanged, and no more weights are loaded than the level allows."""

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
    """A container of two networks; the second is also called through a method."""

    def __init__(self):
        super().__init__()
        self.a, self.b = Net(), Net()

    def encode(self, x):
        return self.b.blocks[0](x)


def offloaded(model, level, device=CPU):
    blocks = [b for net in networks(model).values() for b in net.blocks]
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    offloader = WeightOffloader(model, blocks, weights.__getitem__, device, WeightPolicy())
    offloader.begin(level)
    return offloader


def loaded(model):
    return {name for name, p in model.named_parameters() if not p.is_meta}


def test_the_networks_of_a_container_are_its_children():
    assert set(networks(Two())) == {"a", "b"}
    assert set(networks(Net())) == {""}


@pytest.mark.parametrize("level", LEVELS)
def test_outputs_are_unchanged_at_every_level(level):
    torch.manual_seed(0)
    model, x = Two(), torch.randn(2, 4)
    expected = model.b(model.a(x))
    offloader = offloaded(model, level)
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(model.b(model.a(x)), expected)
            assert torch.equal(model.encode(x), Two.encode(model, x))
    offloader.close()


def test_level_model_keeps_one_network_loaded():
    model, x = Two(), torch.randn(2, 4)
    offloaded(model, "model")
    assert loaded(model) == set()
    with torch.no_grad():
        model.a(x)
        assert loaded(model) == {n for n, _ in model.named_parameters() if n.startswith("a.")}
        model.encode(x)
        assert loaded(model) == {n for n, _ in model.named_parameters() if n.startswith("b.")}


@pytest.mark.parametrize("level", ["block", "sequential"])
def test_a_block_is_loaded_only_while_it_runs(level):
    model = Net()
    offloaded(model, level)
    seen = []
    for block in model.blocks:
        block[0].register_forward_hook(lambda *_: seen.append(loaded(model)))
    with torch.no_grad():
        model(torch.randn(2, 4))
    outside = {"first.weight", "first.bias"}
    assert seen == [outside | {f"blocks.{i}.0.weight", f"blocks.{i}.0.bias"} for i in range(3)]
    assert loaded(model) == outside


def test_a_block_that_fails_is_offloaded_too():
    model = Net()
    offloaded(model, "sequential")
    with pytest.raises(RuntimeError):
        model.blocks[0](torch.randn(2, 3))
    assert not [name for name in loaded(model) if name.startswith("blocks")]


def test_blocks_are_prefetched_in_the_order_they_run():
    model = Net()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    read = []

    def reading(name):
        read.append(name)
        return weights[name]

    offloader = WeightOffloader(model, list(model.blocks), reading, CPU, WeightPolicy())
    offloader.begin("block")
    with torch.no_grad():
        model(torch.randn(1, 4), [2, 0, 1])  # learns the order; its prefetches are discarded
        offloader._prefetcher.pending[1].result()
        read.clear()
        model(torch.randn(1, 4), [2, 0, 1])
        offloader._prefetcher.pending[1].result()  # the first block of the next call, which closing would cancel
    offloader.close()
    names = [name for name in read if name.endswith("weight") and name.startswith("blocks")]
    assert sorted(names) == ["blocks.0.0.weight", "blocks.1.0.weight", "blocks.2.0.weight"]


def test_a_weight_of_the_wrong_shape_is_rejected():
    model = Net()
    offloader = WeightOffloader(model, list(model.blocks), lambda _name: torch.zeros(1), CPU, WeightPolicy())
    with pytest.raises(RuntimeError, match="the offloaded weight first.weight is .*; expected"):
        offloader.begin("none")


def test_loaded_weights_have_the_network_s_precision_and_strides():
    conv = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    weights = {name: p.detach().half().contiguous() for name, p in conv.named_parameters()}
    offloader = WeightOffloader(conv, [conv[0]], weights.__getitem__, CPU, WeightPolicy())
    offloader.begin("sequential")
    seen = []
    conv[0].register_forward_hook(lambda m, *_: seen.append(m.weight))
    with torch.no_grad():
        conv(torch.randn(1, 3, 8, 8))
    assert seen[0].dtype == torch.float32
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_gradients_flow_through_offloaded_blocks():
    """Reconstruction guidance differentiates the denoiser."""
    torch.manual_seed(0)
    model, x = Net(), torch.randn(2, 4, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    offloaded(model, "block")
    (grad,) = torch.autograd.grad(model(x).sum(), x)
    assert torch.equal(grad, expected)


def test_weights_are_loaded_to_any_device():
    model = Net()
    offloaded(model, "block", torch.device("meta"))
    with torch.no_grad():
        assert model(torch.empty(2, 4, device="meta")).is_meta


@pytest.mark.parametrize("name", sorted(registry.FAMILIES))
def test_every_parameter_of_a_family_is_in_exactly_one_unit(name):
    family = registry.family(name)
    with torch.device("meta"):
        model = family.build(family.presets["tiny"])
    found = units(model, family.blocks(model))
    slots = [slot.name for own, blocks in found.values() for unit in (own, *blocks) for slot in unit.slots]
    assert sorted(slots) == sorted(name for name, _ in model.named_parameters())
    assert any(blocks for _, blocks in found.values())


def test_an_offloaded_weight_reports_the_device_it_is_loaded_to():
    """Code that moves inputs to a parameter's device must not move them to the meta device."""
    model = Two()
    offloaded(model, "model")
    assert all(p.is_meta and p.device == CPU for p in model.parameters())


def test_a_nested_submodule_may_be_called_first():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Sequential(nn.Linear(4, 4)))

        def forward(self, x):
            return self.net(x)

    model, x = nn.ModuleList([Deep(), Deep()]), torch.randn(2, 4)
    expected = model[0].net[0][0](x)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    WeightOffloader(model, [], weights.__getitem__, CPU, WeightPolicy()).begin("model")
    with torch.no_grad():
        assert torch.equal(model[0].net[0][0](x), expected)


def test_to_an_offloaded_weight_moves_a_tensor_to_its_target():
    model = Two()
    offloaded(model, "model")
    moved = torch.ones(2, dtype=torch.float64).to(model.a.first.weight)
    assert moved.device == CPU
    assert moved.dtype == torch.float32


def test_computing_with_an_offloaded_weight_raises():
    """torch mixes meta and real tensors without an error."""
    model = Two()
    offloaded(model, "model")
    with pytest.raises(RuntimeError, match="used while offloaded"):
        torch.nn.functional.linear(torch.ones(2, 4), model.a.first.weight)
