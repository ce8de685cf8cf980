"""Choice of precision by weight file and device, and the conversion of weights."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kinema import processor, registry
from kinema.api import load
from kinema.checkpoints import files
from kinema.cli import replay
from kinema.events import Note
from kinema.guide import sample
from kinema.job import build_job, plan_job, planning_canvas
from kinema.memory.plan import Needs, weight_bytes
from kinema.nn import ldm_unet
from kinema.provenance import recipe
from kinema.schema import BadRequest, Request
from kinema.system import WeightPolicy, default_policy, dtype_name, open_system, policy_for

ASK = Request(prompt="a red ball rolls right", seed=1, steps=1)
CPU, GPU = torch.device("cpu"), torch.device("cuda")
FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32


@pytest.fixture
def cpu(monkeypatch):
    """Sets the CPU's capabilities, by PyTorch's names."""

    def of(**units):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)

    return of


@pytest.fixture
def gpu(monkeypatch):
    """Fakes a GPU that never receives weights. Compute capability 8 has native bfloat16, 7 does not."""

    def of(generation):
        monkeypatch.setattr(processor, "accelerators", lambda: ["cuda:0"])
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (generation, 0))
        monkeypatch.setattr("kinema.memory.plan.free_bytes", lambda _device: 2**34)

    return of


def saved(folder, name, dtype):
    family = registry.family(name)
    config = family.presets["tiny"]
    note = json.dumps({"family": name, "config": family.to_json(config)})
    weights = {key: tensor.to(dtype) for key, tensor in family.build(config).state_dict().items()}
    files.write_tensors(folder / f"{name}.safetensors", weights, {"kinema": note})
    return folder / f"{name}.safetensors"


@pytest.mark.parametrize(
    ("stored", "generation", "fits", "expected", "why"),
    [
        (FP16, 8, True, FP16, "weights are stored in float16"),
        (FP16, 7, True, FP16, "weights are stored in float16"),
        (FP16, 8, False, BF16, "stored in float16, whose range this model exceeds"),
        (FP16, 7, False, FP32, "range this model exceeds, and cuda has no native bfloat16"),
        (BF16, 8, True, BF16, "weights are stored in bfloat16"),
        (BF16, 7, True, FP32, "cuda has no native bfloat16"),
        (FP32, 8, True, FP32, "weights are stored in float32"),
        (torch.float64, 8, True, FP32, "weights are stored in float64"),
        (torch.float8_e4m3fn, 8, True, BF16, "weights are stored in 8 bits or fewer"),
        (None, 8, True, FP32, "the model is untrained"),
    ],
)
def test_a_gpu_uses_the_precision_of_the_file(stored, generation, fits, expected, why, gpu):
    gpu(generation)
    policy = default_policy(GPU, stored, fits_float16=fits)
    assert policy.precision == policy.computed == expected
    assert policy.note.startswith(f"computes in {dtype_name(expected)}, ")
    assert why in policy.note


@pytest.mark.parametrize(
    ("stored", "generation", "expected"), [(FP16, 8, FP16), (FP32, 8, BF16), (FP32, 7, FP32), (None, 8, BF16)]
)
def test_auto_uses_bfloat16_on_a_gpu_unless_the_file_is_in_half_precision(stored, generation, expected, gpu):
    gpu(generation)
    assert default_policy(GPU, stored, auto=True).computed == expected


@pytest.mark.parametrize(
    ("units", "auto", "expected", "note"),
    [
        ({"avx512_bf16": True}, False, FP32, ""),
        ({"avx512_bf16": True}, True, BF16, "computes in bfloat16, which this CPU has natively"),
        ({"avx512_bf16": False}, True, FP32, "computes in float32: this CPU has no native bfloat16"),
        ({}, True, FP32, "computes in float32: this CPU has no native bfloat16"),
    ],
)
def test_a_cpu_uses_float32_and_with_auto_native_bfloat16(units, auto, expected, note, cpu):
    cpu(**units)
    assert default_policy(CPU, FP16, auto=auto) == WeightPolicy(expected, expected, note)


def test_a_file_s_half_precision_is_planned_for_recorded_and_reported(gpu, tmp_path, monkeypatch):
    gpu(8)
    monkeypatch.setattr(files, "read_tensors", None)  # headers suffice
    system = load(saved(tmp_path, "svd", FP16)).system
    events = []
    works = plan_job(system, ASK, events.append)
    count = sum(p.numel() for p in system._on_meta().parameters())
    needs = Needs(system, works[0].stage.whole, planning_canvas(works[0]))
    wide = Needs(replace(system, policy=WeightPolicy()), needs.request, needs.canvas)
    assert needs.weights == weight_bytes(system) == 2 * count
    assert wide.upper_bound - needs.upper_bound == system.weights.path.stat().st_size
    assert recipe(works)["dtype"] == "float16"
    assert replay.as_it_was(recipe(works))["dtype"] == "fp16"
    notes = [e.message for e in events if type(e) is Note]
    assert "computes in float16, as its weights are stored in float16" in notes


def test_the_stored_precision_is_that_of_most_floating_point_values(tmp_path):
    mixed = {
        "few": torch.zeros(3, 4),
        "many": torch.zeros(8, 8, dtype=BF16),
        "whole": torch.zeros(99, dtype=torch.int8),
    }
    path = saved(tmp_path, "svd", FP32)
    weights = open_system(path).weights
    assert weights.stored == FP32
    files.write_tensors(path, mixed)
    assert open_system("svd/tiny").weights.stored is None
    assert type(weights)(path).stored == BF16


def test_a_model_that_exceeds_float16_s_range_does_not_compute_in_it(gpu):
    gpu(8)
    assert load("zoetrope").system.policy.computed == BF16  # its file is float16
    gpu(7)
    assert load("zoetrope").system.policy.computed == FP32
    policy = load("zoetrope", dtype=FP16).system.policy
    assert (policy.precision, policy.computed) == (FP16, FP32)
    assert "exceeds float16's range" in policy.note


def test_open_system_defaults_to_float32_on_a_gpu(gpu):
    gpu(8)
    assert open_system("svd-pocket").policy == WeightPolicy()
    assert load("svd-pocket").system.dtype == FP16


def test_a_recipe_without_a_precision_is_replayed_in_float32(gpu):
    gpu(8)
    assert replay.as_it_was({"stages": [{}]})["dtype"] == "fp32"


@pytest.mark.parametrize(
    ("asked", "device", "sentence"),
    [
        ("bf16", "cpu", "dtype is 'bf16'; expected a torch.dtype"),
        (torch.int8, "cpu", "expected float32, bfloat16, float16, float64 or auto"),
        (None, "gpu", "this machine has no device 'gpu'; expected cpu"),
        (None, "meta", "this machine has no device 'meta'; expected cpu"),
    ],
)
def test_invalid_precisions_and_devices_are_rejected(asked, device, sentence):
    with pytest.raises(BadRequest, match=sentence):
        load("svd/tiny", dtype=asked, device=device)


def test_float64_is_rejected_on_devices_without_it():
    with pytest.raises(BadRequest, match="mps does not support float64; use float32, bfloat16 or float16"):
        policy_for(torch.float64, torch.device("mps"))
    assert policy_for(torch.float64, CPU).computed == torch.float64


def test_half_precision_is_computed_in_where_it_is_native(cpu):
    cpu(avx512_bf16=False, amx_bf16=False)
    assert policy_for(BF16, CPU).computed == FP32
    assert policy_for(BF16, GPU).computed == BF16
    assert policy_for(FP16, CPU).computed == FP16  # support unknown: used as requested
    cpu(avx512_bf16=True, amx_bf16=False)
    assert policy_for(BF16, CPU).computed == BF16
    cpu()
    assert policy_for(BF16, CPU).computed == BF16


# ------------------------------------------------------------------------------------ the policy


def test_a_weight_is_rounded_then_merged_then_cast():
    third = torch.tensor([1 / 3])
    policy, merged = WeightPolicy(BF16, FP32), []
    ready = policy.ready(third, CPU, merge=lambda weight: merged.append(weight) or weight.float() + third)
    assert merged[0].dtype == BF16
    assert torch.equal(ready, third.to(BF16).float() + third)
    assert policy.ready(third.double(), CPU).dtype == FP32
    assert WeightPolicy(FP16, FP16).ready(third.double(), CPU).dtype == FP16
    assert policy.ready(torch.tensor([3]), CPU).dtype == torch.int64


def test_a_weight_that_is_ready_already_is_not_copied():
    weight = torch.ones(2, 3)
    assert WeightPolicy().ready(weight, CPU) is weight
    assert WeightPolicy().ready(weight, CPU, like=weight) is weight
    restrided = WeightPolicy().ready(weight, CPU, like=torch.empty(3, 2).t())
    assert torch.equal(restrided, weight)
    assert restrided.stride() == (1, 2)


def test_rounding_of_weights_is_reported_and_recorded(cpu):
    cpu(avx512_bf16=False)
    model, plain = load("zoetrope", dtype=BF16), load("zoetrope")
    events = []
    clip = model.run(ASK, on_event=events.append)
    for rounded, exact in zip(model.system.model.parameters(), plain.system.model.parameters(), strict=True):
        assert rounded.dtype == FP32
        assert torch.equal(rounded, exact.to(BF16).float())
    assert clip.recipe["dtype"] == "bfloat16"
    assert any("this CPU has no native bfloat16" in event.message for event in events if isinstance(event, Note))


def test_offloaded_weights_are_rounded_too(cpu):
    cpu(avx512_bf16=False)
    resident, offloaded = load("zoetrope", dtype=BF16), load("zoetrope", dtype=BF16, offload="block")
    assert torch.equal(resident.run(ASK).video, offloaded.run(ASK).video)


# -------------------------------------------------------------------- a device without float64


class WithoutFloat64(TorchDispatchMode):
    """Rejects float64 tensors on the meta device, as Apple GPUs do."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 1
        result = func(*args, **(kwargs or {}))
        if any(isinstance(x, torch.Tensor) and x.is_meta and x.dtype == torch.float64 for x in tree_leaves(result)):
            raise TypeError(f"{func} creates float64 on the device")
        return result


@pytest.mark.parametrize("name", sorted(registry.FAMILIES))
def test_no_family_needs_float64_on_the_device(name, monkeypatch):
    monkeypatch.setattr(processor, "NO_FLOAT64", ("meta",))
    system = load(name, preset="tiny").system
    (work,) = build_job(system, ASK.with_(steps=2))
    request, canvas = work.stage.whole, planning_canvas(work)
    on_device = Needs(system, request, canvas).outline
    with WithoutFloat64(), torch.no_grad():
        noise = torch.zeros(on_device.latent_shape(request).bcthw)
        text = {None: on_device.encode_prompt(request)}
        z = sample(on_device, request, text, canvas, noise, system.noise(request))
        on_device.codec.decode(z)


def test_the_sums_of_a_norm_over_parts_need_no_float64(monkeypatch):
    norm = torch.nn.GroupNorm(2, 4)
    parts = [torch.randn(1, 2, 3, 4), torch.randn(1, 1, 3, 4)]
    wide = ldm_unet.scale_and_shift(norm, parts)
    monkeypatch.setattr(processor, "NO_FLOAT64", ("cpu", "meta"))
    torch.testing.assert_close(ldm_unet.scale_and_shift(norm, parts), wide)
    with WithoutFloat64():
        scale_and_shift = ldm_unet.scale_and_shift(norm.to("meta"), [part.to("meta") for part in parts])
    assert [each.dtype for each in scale_and_shift] == [FP32, FP32]
