"""Image models to inflate."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from kinema import registry
from kinema.checkpoints import files


def written(tmp_path, **changes):
    """An image model as Kinema writes it."""
    animatediff = registry.family("animatediff")
    base = animatediff.presets["pocket"]
    config = replace(base, channels=(32, 64), context=32, heads=(2, 4), text=(replace(base.text[0], width=32, mlp=48),))
    config = replace(config, **changes)
    torch.manual_seed(1)
    model = animatediff.build(config)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.1)
    note = json.dumps({"family": "animatediff", "config": animatediff.to_json(config)})
    path = tmp_path / "image.safetensors"
    files.write_tensors(path, model.state_dict(), {"kinema": note})
    return path, model


@pytest.fixture
def image_file():
    return written
