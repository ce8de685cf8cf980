"""Blocks compiled in place: one graph per kind of block, and the rest of the model unchanged."""

from __future__ import annotations

import copy

import pytest
import torch
import torch._dynamo
from einops import rearrange
from torch import nn

from kinema import registry
from kinema.api import load
from kinema.events import Note
from kinema.provenance import frames_hash
from kinema.schema import BadRequest, Request
from kinema.system import blocks as module
from kinema.system.blocks import check_compiler, checkpoint_blocks, compile_blocks

MODELS = (
    *(f"{name}/tiny" for name in sorted(registry.FAMILIES)),
    *(f"opensora/tiny-{version}" for version in ("1.0", "1.1", "1.3")),
)
ASK = Request(prompt="a red ball rolls right", seed=5, steps=1)


class Block(nn.Module):
    def __init__(self, width, out=None):
        super().__init__()
        self.linear = nn.Linear(width, out or width)

    def forward(self, x, *, twice=False):
        y = x + self.linear(x).sum(-1, keepdim=True)
        return 2 * y if twice else y


@pytest.mark.parametrize("name", MODELS)
def test_sampling_compiles_one_graph_per_kind_of_block_without_breaks(name, counting):
    backend, kinds = counting
    model = load(name)
    plain = model.run(ASK).video
    blocks = model.system.family.blocks(model.system.model)
    kinds.watch(blocks)
    compile_blocks(blocks, backend)
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):  # one graph per size, so that they can be counted
        compiled = model.run(ASK).video
    assert backend.graphs == len(kinds) > 0
    assert backend.breaks() == 0
    torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=1e-4)
    model.run(ASK.with_(seed=6))
    assert backend.graphs == len(kinds)


def test_a_second_size_is_compiled_once_more_and_a_third_not_at_all(counting):
    backend, _ = counting
    model = load("vdm", preset="tiny")
    compile_blocks(model.system.family.blocks(model.system.model), backend)
    counts = []
    for height, width in ((16, 16), (32, 32), (32, 48)):
        model.run(ASK.with_(height=height, width=width, guidance=1.0))
        counts.append(backend.graphs)
    assert counts[0] < counts[1] <= 2 * counts[0]
    assert counts[2] == counts[1]


def test_blocks_of_one_class_with_equal_shapes_share_a_graph(counting):
    backend, _ = counting
    blocks = [Block(4), Block(4), *(Block(4, out) for out in range(5, 17))]
    compile_blocks(blocks, backend)
    for block in blocks:
        torch.testing.assert_close(block(torch.ones(2, 4)), Block.forward(block, torch.ones(2, 4)))
        torch.testing.assert_close(block(torch.ones(2, 4)), block(torch.ones(2, 4), twice=True) / 2)
    assert backend.graphs == 2 * 13  # beyond PyTorch's recompilation limit of eight


def test_einops_is_one_operation_of_the_graph(counting):
    """Tracing how it parses its pattern took half of all time of compiling."""

    class Folding(nn.Module):
        def forward(self, x):
            return rearrange(x, "b (t c) -> (b t) c", c=2) + 1

    operations = []

    def backend(graph, _inputs):
        operations.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    block = Folding()
    compile_blocks([block], backend)
    assert torch.equal(block(torch.zeros(3, 8)), torch.ones(12, 2))
    assert operations[0] is rearrange
    assert len(operations) == 2


def test_names_weights_and_copies_are_unaffected(counting):
    backend, _ = counting
    model = nn.Sequential(Block(4), Block(4))
    names = list(model.state_dict())
    compile_blocks(model, backend)
    checkpoint_blocks(model)
    assert list(model.state_dict()) == names
    assert [name for name, _ in model.named_modules()] == ["", "0", "0.linear", "1", "1.linear"]
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].linear.weight.zero_()
        twin[0].linear.bias.zero_()
    x = torch.ones(2, 4)
    assert torch.equal(twin[0](x), x)
    assert not torch.equal(model[0](x), x)


def test_offloaded_blocks_are_compiled_once_and_give_the_same_clip(counting, monkeypatch):
    backend, _ = counting
    ask = ASK.with_(prompt=" ", height=32, width=32, frames=2)
    compiled = compile_blocks
    monkeypatch.setattr("kinema.system.system.compile_blocks", lambda blocks: compiled(blocks, backend))
    monkeypatch.setattr("kinema.system.opening.check_compiler", lambda device: None)
    expected = frames_hash(load("svd-pocket", offload="none", compile=True).run(ask).video)
    graphs = backend.graphs
    assert graphs > 1
    for offload in ("model", "block", "sequential"):
        before, offloaded = backend.graphs, load("svd-pocket", offload=offload, compile=True)
        for _ in range(2):
            assert frames_hash(offloaded.run(ask).video) == expected, offload
            assert backend.graphs - before <= graphs, offload  # this model's blocks are compiled once
    assert backend.breaks() == 0


def test_compilation_is_reported_and_recorded_in_the_recipe(counting, monkeypatch):
    backend, _ = counting
    compiled = compile_blocks
    monkeypatch.setattr("kinema.system.system.compile_blocks", lambda blocks: compiled(blocks, backend))
    monkeypatch.setattr("kinema.system.opening.check_compiler", lambda device: None)
    events = []
    clip = load("zoetrope", preset="tiny", compile=True).run(ASK, on_event=events.append)
    assert backend.graphs > 0
    assert clip.recipe["compiled"] is True
    assert sum(isinstance(e, Note) and "last bits may differ" in e.message for e in events) == 1
    assert "compiled" not in load("zoetrope", preset="tiny").run(ASK).recipe


def test_a_missing_compiler_is_reported_before_the_model_is_opened(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BadRequest, match=r"compile needs a C\+\+ compiler .* no-such-compiler was not found"):
        load("no-such-model", device="cpu", compile=True)


def test_a_gpu_needs_only_triton(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(BadRequest, match="needs Triton on cuda"):
        check_compiler(torch.device("cuda"))
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    check_compiler(torch.device("cuda:0"))
