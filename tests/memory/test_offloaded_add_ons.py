"""Every add-on of AnimateDiff can be offloaded without changing a bit of the clip."""

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
    "scribble": (replace(TINY, sparse="scribble", vae_channels=(32, 32, 32, 32)), {"extra": {"scribble": "IMAGE"}}),
    "controls": (
        replace(TINY, controls=(DEPTH, TILE), vae_channels=(32, 32, 32, 32)),
        {"extra": {"control.depth": "IMAGE", "control.tile": "IMAGE", "control_span.tile": [0.5, 1]}},
    ),
    "plain": (
        replace(TINY, vision=VISION, adapters=(AdapterSize(embedding=24),)),
        {"extra": {"ip_image": {0: "IMAGE", 2: "IMAGE"}}},
    ),
    "plus": (
        replace(TINY, vision=VISION, adapters=(AdapterSize(kind="plus", embedding=32, width=48, inner=128, layers=2),)),
        {"extra": {"ip_image": "IMAGE"}},
    ),
    "two text encoders": (
        replace(TINY, text=(TINY.text[0], WORDS), context=64, size_embedding=8, linear=True),
        {},
    ),
}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("media") / "image.png"
    Image.radial_gradient("L").resize((40, 40)).convert("RGB").save(path)
    return str(path)


def saved(config, path):
    """A file with a random model without zero-initialised weights."""
    torch.manual_seed(0)
    model = FAMILY.build(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    note = json.dumps({"family": "animatediff", "config": FAMILY.to_json(config)})
    files.write_tensors(path, model.state_dict(), {"kinema": note})
    return path


def with_image(options, image):
    """The options with each placeholder replaced by the image's path."""
    if isinstance(options, dict):
        return {key: with_image(value, image) for key, value in options.items()}
    return image if options == "IMAGE" else options


@pytest.mark.parametrize("name", PARTS)
def test_offloading_changes_no_bit_with_any_add_on(name, image, tmp_path):
    config, options = PARTS[name]
    path = saved(config, tmp_path / "model.safetensors")
    options = with_image(options, image)
    if options.pop("image", False):
        options |= {"image": image, "task": "animate"}
    request = Request(prompt="a red ball", seed=5, steps=2, frames=3, **options)
    expected = load(path).run(request).video
    plain = load(path).run(request.with_(extra={})).video
    assert expected.isfinite().all()
    assert not request.extra or not torch.equal(expected, plain)  # the add-on has an effect
    for offload in ("model", "block", "sequential"):
        model = load(path, offload=offload)
        assert torch.equal(model.run(request).video, expected), offload
        assert any(p.is_meta for p in model.system.model.parameters())
        assert torch.equal(model.run(request).video, expected), f"{offload}, again"
