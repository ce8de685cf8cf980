"""Files as people have them: of a tiny model with numbers, and of the published sizes without data."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kinema.families.opensora.config import TINY, TINY_DC_AE, Config
from kinema.families.opensora.files.transformer_file import TransformerFile
from kinema.families.opensora.model import OpenSora

BF16 = 2


def sparse_file(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16") -> Path:
    """A file with these tensors and no data: a hole that the disk does not store."""
    table, at = {}, 0
    for name, shape in shapes.items():
        size = BF16 * math.prod(shape)
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(table).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + at)
    return path


def written(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    return path


def part(model: OpenSora, name: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{name}."): v for k, v in model.state_dict().items() if k.startswith(f"{name}.")}


def in_layout(model: OpenSora, config: Config, kind: str, rope: str) -> dict[str, Tensor]:
    """The transformer's tensors in a layout."""
    file = TransformerFile(replace(config.transformer, rope=rope), kind, "half")
    native = part(model, "transformer")
    return {name: file.make_foreign(name, native.__getitem__) for name in file.foreign}


def _model(config: Config) -> tuple[Config, OpenSora]:
    config = replace(config, words=())
    torch.manual_seed(3)
    model = OpenSora(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return config, model.eval()


@pytest.fixture(scope="session")
def tiny() -> tuple[Config, OpenSora]:
    return _model(TINY)


@pytest.fixture(scope="session")
def tiny_dc_ae() -> tuple[Config, OpenSora]:
    return _model(TINY_DC_AE)


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    return written


@pytest.fixture(scope="session")
def sparse() -> Callable[..., Path]:
    return sparse_file


@pytest.fixture(scope="session")
def of_part() -> Callable[..., dict[str, Tensor]]:
    return part


@pytest.fixture(scope="session")
def laid_out() -> Callable[..., dict[str, Tensor]]:
    return in_layout


@pytest.fixture
def repository(tiny: tuple[Config, OpenSora], tmp_path: Path) -> Path:
    """A folder as the hub's: the transformer's file and its VAE's beside it; returns the transformer's."""
    _, model = tiny
    written(tmp_path / "hunyuan_vae.safetensors", part(model, "vae"), {"format": "pt"})
    return written(tmp_path / "Open_Sora_v2.safetensors", part(model, "transformer"))
