from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from kinema.families.vdm.config import Config, presets
from kinema.families.vdm.model import VideoUNet


@pytest.fixture
def tiny() -> Config:
    return presets()["tiny"]


@pytest.fixture
def lively(tiny: Config) -> Callable[..., VideoUNet]:
    """Builds tiny float64 networks with no branch near zero, so that any leak between frames shows."""

    def make(**changes: Any) -> VideoUNet:
        torch.manual_seed(0)
        model = VideoUNet(replace(tiny, **changes)).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
        return model

    return make
