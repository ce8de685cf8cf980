"""Growing weights: pruned MLPs keep their outputs, and a sprite is added."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from kinema.checkpoints import files
from kinema.families.zoetrope.family import FAMILY
from kinema.families.zoetrope.grow import grow, grow_network, prune, sample_clips
from kinema.families.zoetrope.model import TokenBlock
from kinema.schema import BadRequest

TINY, SPRITE = FAMILY.presets["tiny"], FAMILY.presets["tiny-sprite"]


def test_redundant_units_are_pruned_without_loss():
    g = torch.Generator().manual_seed(0)
    few = torch.randn(200, 6, generator=g, dtype=torch.float64)
    hidden = torch.cat([few, few @ torch.randn(6, 6, generator=g, dtype=torch.float64), torch.ones(200, 1)], 1)
    weight = torch.randn(4, 13, generator=g, dtype=torch.float64)
    kept, refitted, lost = prune(weight, hidden.mT @ hidden, 6)
    assert kept.shape == (6,)
    assert lost < 1e-6
    left = torch.cat([hidden[:, kept], torch.ones(200, 1)], 1)
    torch.testing.assert_close(left @ refitted.mT, hidden @ weight.mT, atol=1e-3, rtol=1e-3)


def test_growing_prunes_inactive_units_and_adds_a_sprite():
    torch.manual_seed(0)
    old = FAMILY.build(TINY).eval()
    half = TINY.mlp // 2
    blocks = {n: m for n, m in old.named_modules() if isinstance(m, TokenBlock)}
    with torch.no_grad():
        for block in blocks.values():  # every second unit is inactive
            block.up.weight[::2] = 0
            block.up.bias[::2] = 0
    video, captions = sample_clips(1)
    small = F.interpolate(video[:, :, :8].flatten(0, 1), (16, 16)).unflatten(0, (-1, 3))
    events = []
    config = replace(SPRITE, mlp=half)
    new = grow_network(old, TINY, config, [(small, captions)] * 2, events.append)
    assert new.sprite is not None
    assert [re.sub(r"[\d.]+ %", "N %", note.message) for note in events] == [
        f"{name}: {TINY.mlp} to {half} units, N % of its output's variance lost" for name in blocks
    ]
    assert all(float(re.search(r"([\d.]+) %", note.message)[1]) < 0.01 for note in events)
    for name, block in blocks.items():
        thin = new.get_submodule(name)
        assert torch.equal(thin.up.weight, block.up.weight[1::2])
        torch.testing.assert_close(thin.down.weight, block.down.weight[:, 1::2], atol=1e-3, rtol=1e-3)
    kept = set(old.state_dict()) - {
        f"{n}.{p}" for n in blocks for p in ("up.weight", "up.bias", "down.weight", "down.bias")
    }
    assert all(torch.equal(new.state_dict()[name], old.state_dict()[name]) for name in kept)


def test_weights_of_another_model_are_rejected(tmp_path):
    config = FAMILY.presets["tiny-sprite"]
    metadata = json.dumps({"family": "zoetrope", "config": FAMILY.to_json(config)})
    files.write_tensors(tmp_path / "a.safetensors", FAMILY.build(config).state_dict(), {"kinema": metadata})
    with pytest.raises(BadRequest, match=r"a\.safetensors contains another model; expected weights of zoetrope/base"):
        grow(tmp_path / "a.safetensors", tmp_path / "b.safetensors", print)
    assert not (tmp_path / "b.safetensors").exists()
