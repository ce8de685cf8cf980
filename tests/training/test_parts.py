"""Compiled blocks, activation checkpointing and gradient accumulation."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch._dynamo
from torch.autograd.graph import saved_tensors_hooks

from kinema import registry
from kinema.families.opensora.pocket.presets import PRESETS
from kinema.system.blocks import checkpoint_blocks, compile_blocks
from kinema.training import run as loop
from kinema.training import setup
from kinema.training.options import TrainOptions

FAMILIES = [f"{name}/tiny" for name in sorted(registry.FAMILIES)]
STAGES = [
    *({"model": name} for name in FAMILIES),
    {"model": "svd/tiny", "stage": "image"},
    {"model": "svd/tiny", "only": "temporal"},
    {"model": "svd/tiny", "lora": "2"},
    {"model": "animatediff/tiny", "stage": "image"},
    {"model": "animatediff/tiny", "stage": "sparsectrl"},
    {"model": "animatediff/tiny", "lora": "2"},
]
COMPILED = [
    *({"model": name} for name in FAMILIES if name not in ("animatediff/tiny", "svd/tiny")),
    {"model": "svd/tiny", "only": "temporal"},
    {"model": "animatediff/tiny", "stage": "sparsectrl"},
    {"model": "animatediff/tiny", "lora": "2"},
]
"""The blocks of every family, of SparseCtrl and under a LoRA, with and without frozen parts; a graph takes seconds."""
OTHERS = [
    *({"model": f"opensora/tiny-{version}"} for version in ("1.0", "1.1", "1.3")),
    {"model": "opensora/small", "stage": "codec"},
    {"model": "opensora/small", "stage": "flow"},
]
"""Networks of other blocks in the same families."""


@pytest.fixture
def begun(small, tmp_path, heard, monkeypatch):
    """``begun(**options)``: a run before its first step, in float64, without zero weights."""
    runs, pocket = [], PRESETS["pocket"]
    transformer = replace(
        pocket.transformer, channels=6, width=48, heads=3, axes=(4, 6, 6), double_blocks=1, single_blocks=1
    )
    codec = replace(pocket.pocket, latent=6, channels=(16, 24, 32), encoding=(1, 1, 1), decoding=(1, 1, 1))
    few = replace(pocket, frames=9, height=32, width=48, transformer=transformer, pocket=codec)
    monkeypatch.setitem(PRESETS, "small", few)

    def make(**options):
        run = setup.begin(TrainOptions(**small(**{"validate_every": 0, "batch": 4, **options})), tmp_path, heard)
        runs.append(run)
        noise = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in run.model.parameters():
                p.add_(torch.randn(p.shape, generator=noise) * 0.02)
            if options["model"] == "opensora/small":
                run.model.codec.variance.fill_(0.5)  # as if it were trained
        run.model.double()
        return run

    yield make
    for run in runs:
        run.log.close()


@pytest.fixture(autouse=True)
def _doubles():
    """New tensors, including noise, are float64; `batch_of` casts clips."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def batch_of(run, step=0):
    batch = run.stream.at(step)
    cast = {name: x.double() for name in ("video", "mask", "images") if (x := getattr(batch, name)) is not None}
    return loop.replace(batch, **cast)


def gradients(run, batch, parts=1):
    """(loss, gradient norm, gradients by parameter name)."""
    run.model.zero_grad(set_to_none=True)
    split = loop.replace(run, options=loop.replace(run.options, accumulate=parts))
    loss, norm = loop.gradients(split, batch)
    return loss, norm, {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None}


def assert_equal(one, other, within=1e-12):
    assert one[0] == pytest.approx(other[0], rel=within)
    assert one[1] == pytest.approx(other[1], rel=within)
    assert one[2].keys() == other[2].keys()
    assert max(float(g.abs().max()) for g in one[2].values()) > 1e-5
    for name, gradient in one[2].items():
        torch.testing.assert_close(gradient, other[2][name], atol=within, rtol=within, msg=name)


@pytest.mark.parametrize("options", [*COMPILED, *OTHERS], ids=lambda options: " ".join(options.values()))
def test_training_compiles_one_graph_per_kind_of_block_without_breaks(options, begun, counting):
    backend, kinds = counting
    run = begun(batch=1, **options)
    batch = batch_of(run)
    plain = gradients(run, batch)
    blocks = run.system.family.blocks(run.model)
    kinds.watch(blocks)
    compile_blocks(blocks, backend)
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        compiled = gradients(run, batch)
    assert backend.graphs == len(kinds) > 0
    assert backend.breaks() == 0
    assert_equal(compiled, plain)


@pytest.mark.parametrize("options", STAGES, ids=lambda options: " ".join(options.values()))
def test_checkpointed_blocks_give_the_same_gradients_and_store_less(options, begun):
    run = begun(batch=2, **options)
    batch, kept, weights = batch_of(run), [], {p.untyped_storage().data_ptr() for p in run.model.parameters()}

    def keep(x):
        if x.untyped_storage().data_ptr() not in weights:
            kept[-1] += x.numel()
        return x

    def enter(_block, inputs):  # inputs that a checkpointed block stores
        keep(inputs[0])

    results = []
    for checkpointed in (False, True):
        kept.append(0)
        if checkpointed:
            blocks = run.system.family.blocks(run.model)
            for block in blocks:
                block.register_forward_pre_hook(enter)
            checkpoint_blocks(blocks)
        with saved_tensors_hooks(keep, lambda x: x):
            results.append(gradients(run, batch))
    assert_equal(*results)
    assert kept[1] < 0.6 * kept[0]


@pytest.mark.parametrize("options", [*STAGES, *OTHERS], ids=lambda options: " ".join(options.values()))
def test_four_parts_of_one_clip_equal_one_batch_of_four(options, begun):
    run = begun(**options)
    batch = batch_of(run)
    whole, parted = gradients(run, batch), gradients(run, batch, parts=4)
    assert_equal(whole, parted)
    assert_equal(whole, gradients(run, batch, parts=2))


@pytest.mark.parametrize("model", ["zoetrope/tiny", "svd/tiny"])  # Muon with AdamW, and AdamW
def test_the_steps_after_accumulation_equal_those_of_whole_batches(model, begun):
    """Two steps: the second has the optimisers' memory of the first."""
    run = begun(model=model, steps=10)
    start, memory, weights = copy.deepcopy(run.model.state_dict()), [o.state_dict() for o in run.optimisers], []
    for parts in (1, 4):
        run.model.load_state_dict(start)
        for optimiser, state in zip(run.optimisers, copy.deepcopy(memory), strict=True):
            optimiser.load_state_dict(state)
        run.state.step = 0
        split = loop.replace(run, options=loop.replace(run.options, accumulate=parts))
        batches = (batch_of(run, at) for at in range(2))
        events = [loop.step(split, batches, lambda event: None) for _ in range(2)]
        weights.append(copy.deepcopy(run.model.state_dict()))
    moved = max(float((weights[0][name] - start[name]).abs().max()) for name in start)
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], atol=1e-4 * moved, rtol=0, msg=name)
    assert moved > 0.1 * events[-1].learning_rate
