"""Linear layers with a low-rank update."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kinema.checkpoints.lora_formats import Adapter, Merged
from kinema.training.lora import LoraLinear, adapt


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"one": nn.Linear(6, 8), "more": nn.ModuleList([nn.Linear(8, 4, bias=False), nn.SiLU()])})


def run(model, x):
    return model["more"][1](model["more"][0](model["one"](x)))


def adapted(wanted=r"more\.0|one", rank=2, alpha=1.0):
    model = network()
    return model, adapt(model, wanted, rank, alpha, torch.Generator().manual_seed(1))


def test_a_freshly_adapted_network_computes_the_same_function():
    x = torch.randn(3, 6)
    model, names = adapted()
    assert sorted(names) == ["more.0", "one"]
    assert torch.equal(run(model, x), run(network(), x))


def test_only_the_updates_are_trained_and_layers_keep_their_names():
    model, _ = adapted("one")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"one.lora_down", "one.lora_up"}
    assert set(network().state_dict()) < set(model.state_dict())


def test_the_update_equals_the_merged_weight():
    x = torch.randn(3, 6)
    model, names = adapted()
    for name in names:
        nn.init.normal_(model.get_submodule(name).lora_up)
    lora = {n: Adapter((m := model.get_submodule(n)).lora_down, m.lora_up, 1.0) for n in names}
    merged = network()
    Merged(merged).set([(lora, 1.0)])
    assert not torch.allclose(run(merged, x), run(network(), x), atol=1e-3)
    torch.testing.assert_close(run(model, x), run(merged, x), atol=1e-6, rtol=1e-6)


def test_initialisation_depends_on_the_seed_and_the_weight_is_shared():
    (first, _), (second, _) = adapted(), adapted()
    assert torch.equal(first["one"].lora_down, second["one"].lora_down)
    base = network()
    weight = base["one"].weight
    adapt(base, "one", 2, 2, torch.Generator())
    assert isinstance(base["one"], LoraLinear)
    assert base["one"].weight is weight


def test_selecting_no_layer_is_refused():
    with pytest.raises(ValueError, match="no linear layer"):
        adapt(network(), "two", 2, 2, torch.Generator())
