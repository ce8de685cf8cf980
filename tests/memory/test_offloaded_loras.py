"""LoRAs in offloaded weights: clips equal those of a resident network bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from kinema import registry
from kinema.api import load
from kinema.checkpoints import files
from kinema.checkpoints.lora_formats import Adapter, write_lora
from kinema.families.svd.config import TINY
from kinema.generate import generate
from kinema.schema import Request
from kinema.system import MemoryOptions

ASK = Request(prompt=" ", seed=5, steps=1)
SMALL = replace(TINY, frames=3, height=32, width=32)
LAYERS = ("attn1.to_q", "attn1.to_v", "attn2.to_v")


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    torch.set_num_threads(1)
    family = registry.family("svd")
    torch.manual_seed(0)
    model = family.build(SMALL)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    path = tmp_path_factory.mktemp("model") / "svd.safetensors"
    files.write_tensors(
        path, model.state_dict(), {"kinema": json.dumps({"family": "svd", "config": family.to_json(SMALL)})}
    )
    return path


@pytest.fixture(scope="module")
def loras(model_file):
    """Two files that share layers, so that the order of merging matters."""
    paths = []
    for seed in (1, 2):
        random = torch.Generator().manual_seed(seed)
        down, up = (torch.randn(shape, generator=random) for shape in ((4, 32), (32, 4)))
        block = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
        paths.append(model_file.parent / f"{seed}.safetensors")
        write_lora(paths[-1], {f"{block}.{layer}": Adapter(down, up, 2.0) for layer in LAYERS}, "kohya")
    return {paths[0]: 0.7, paths[1]: -0.4}


def clip(model, offload="none"):
    system = replace(model.system, memory=MemoryOptions(offload=offload))
    object.__setattr__(system, "runtime", model.system.runtime)  # the same network, wherever its weights are
    return generate(system, ASK).video


@pytest.fixture(scope="module")
def expected(model_file, loras):
    first = dict(list(loras.items())[:1])
    clips = {name: load(model_file, loras=some).run(ASK).video for name, some in
             (("both", loras), ("first", first), ("none", {}))}  # fmt: skip
    assert not torch.equal(clips["both"], clips["none"])
    assert not torch.equal(clips["both"], clips["first"])
    return clips


@pytest.mark.parametrize("offload", ["model", "block", "sequential"])
def test_offloaded_weights_follow_changes_of_loras(model_file, loras, expected, offload):
    model = load(model_file, loras=loras, offload=offload)
    assert torch.equal(model.run(ASK).video, expected["both"])
    model.use_loras(dict(list(loras.items())[:1]))
    assert torch.equal(model.run(ASK).video, expected["first"])
    model.use_loras({})
    assert torch.equal(model.run(ASK).video, expected["none"])


def test_loras_merge_into_rounded_weights_as_in_a_resident_network(model_file, loras):
    resident = load(model_file, loras=loras, dtype=torch.bfloat16).run(ASK).video
    assert torch.equal(load(model_file, loras=loras, dtype=torch.bfloat16, offload="block").run(ASK).video, resident)


def test_plans_may_change_while_loras_are_active(model_file, loras, expected):
    """LoRAs merged under one plan are not merged again under the next."""
    model = load(model_file, loras=loras)
    for offload in ("none", "block", "none", "model", "sequential", "none"):
        assert torch.equal(clip(model, offload), expected["both"])
    model.use_loras({})
    assert torch.equal(clip(model), expected["none"])
    assert torch.equal(clip(model, "block"), expected["none"])
