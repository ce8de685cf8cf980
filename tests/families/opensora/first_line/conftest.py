"""What tools/record_opensora_samplers.py recorded from Open-Sora 1.0 to 1.3."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from torch import Tensor

RECORDED = Path(__file__).parents[1] / "recorded"


Recorded = Callable[[str], tuple[dict[str, Tensor], dict[str, Any]]]


@pytest.fixture(scope="session")
def recorded() -> Recorded:
    """The tensors of a recording, and what its metadata say."""

    def read(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        with safe_open(RECORDED / f"samplers-{name}.safetensors", "pt") as file:
            told = {key: json.loads(each) for key, each in file.metadata().items() if key not in ("commit", "script")}
            return {key: file.get_tensor(key) for key in file.keys()}, told

    return read
