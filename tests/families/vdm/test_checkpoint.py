from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kinema.checkpoints.source import Source
from kinema.families.vdm.checkpoint import convert
from kinema.families.vdm.config import Config
from kinema.families.vdm.family import FAMILY
from kinema.families.vdm.model import VideoUNet
from kinema.schema import BadRequest


@pytest.fixture
def tensors(tiny: Config) -> dict[str, torch.Tensor]:
    return dict(VideoUNet(tiny).state_dict())


def test_convert_returns_the_networks_tensors_unchanged(tiny: Config, tensors: dict[str, torch.Tensor]) -> None:
    got = convert(tiny, tensors)
    assert got.keys() == tensors.keys()
    assert all(got[name] is tensors[name] for name in tensors)


def test_a_missing_tensor_is_rejected_by_name(tiny: Config, tensors: dict[str, torch.Tensor]) -> None:
    del tensors["null"]
    with pytest.raises(BadRequest, match=r"lacks tensors \(1\): null"):
        convert(tiny, tensors)


def test_an_unexpected_tensor_is_rejected_by_name(tiny: Config, tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(BadRequest, match="unexpected tensors.*lora_up"):
        convert(tiny, {**tensors, "lora_up": torch.zeros(1)})


def test_a_wrong_shape_is_rejected_with_the_expected_one(tiny: Config, tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(BadRequest, match=r"null is \(3,\).*\(48,\)"):
        convert(tiny, {**tensors, "null": torch.zeros(3)})


def test_a_file_without_kinema_metadata_is_not_recognised(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "vdm.safetensors")
    assert FAMILY.checkpoints.recognise(Source(tmp_path / "vdm.safetensors")) is None
