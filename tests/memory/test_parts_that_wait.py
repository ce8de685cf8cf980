"""Every part that may stand beside AnimateDiff's image model takes turns too, and no bit of the clip changes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from kinema import registry
from kinema.api import load
from kinema.checkpoints import files
from kinema.families.animatediff.config import AdapterSize, ControlSize, VisionSize
from kinema.schema import Request

FAMILY = registry.family("animatediff")
TINY = FAMILY.presets["tiny"]
VISION = VisionSize(width=32, layers=3, heads=2, mlp=64, patch=8, side=32, projection=24)
DEPTH, TILE = (ControlSize(name, depths=(1, None), middle=1) for name in ("depth", "tile"))
WORDS = replace(TINY.text[0], activation="gelu", projection=24)

PARTS = {
    "v1": (replace(TINY, motion="v1", motion_mid=False), {}),
    "pia": (replace(TINY, motion="pia"), {"image": True}),
    "sparse rgb": (replace(TINY, sparse="rgb"), {"image": True}),
    "scribble": (replace(TINY, sparse="scribble", vae_channels=(32, 32, 32, 32)), {"extra": {"scribble": "PICTURE"}}),
    "controls": (
        replace(TINY, controls=(DEPTH, TILE), vae_channels=(32, 32, 32, 32)),
        {"extra": {"control.depth": "PICTURE", "control.tile": "PICTURE", "control_span.tile": [0.5, 1]}},
    ),
    "plain": (
        replace(TINY, vision=VISION, adapters=(AdapterSize(embedding=24),)),
        {"extra": {"ip_image": {0: "PICTURE", 2: "PICTURE"}}},
    ),
    "plus": (
        replace(TINY, vision=VISION, adapters=(AdapterSize(kind="plus", embedding=32, width=48, inner=128, layers=2),)),
        {"extra": {"ip_image": "PICTURE"}},
    ),
    "two text encoders": (
        replace(TINY, text=(TINY.text[0], WORDS), context=64, size_embedding=8, linear=True),
        {},
    ),
}


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("media") / "picture.png"
    Image.radial_gradient("L").resize((40, 40)).convert("RGB").save(path)
    return str(path)


def saved(config, path):
    """A random model in a file, with nothing left at zero."""
    torch.manual_seed(0)
    model = FAMILY.build(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    note = json.dumps({"family": "animatediff", "config": FAMILY.to_json(config)})
    files.write_tensors(path, model.state_dict(), {"kinema": note})
    return path


def put(told, picture):
    """The options with the picture in its places."""
    if isinstance(told, dict):
        return {key: put(value, picture) for key, value in told.items()}
    return picture if told == "PICTURE" else told


@pytest.mark.parametrize("name", PARTS)
def test_offloading_changes_no_bit_of_any_part(name, picture, tmp_path):
    config, told = PARTS[name]
    path = saved(config, tmp_path / "model.safetensors")
    options = put(told, picture)
    if options.pop("image", False):
        options |= {"image": picture, "task": "animate"}
    request = Request(prompt="a red ball", seed=5, steps=2, frames=3, **options)
    expected = load(path).run(request).video
    plain = load(path).run(request.with_(extra={})).video
    assert expected.isfinite().all()
    assert not request.extra or not torch.equal(expected, plain)  # the part is at work
    for offload in ("model", "block", "sequential"):
        model = load(path, offload=offload)
        assert torch.equal(model.run(request).video, expected), offload
        assert any(p.is_meta for p in model.system.model.parameters())
        assert torch.equal(model.run(request).video, expected), f"{offload}, again"
