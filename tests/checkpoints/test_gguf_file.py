"""GGUF files written by the gguf package, and damaged ones."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kinema.checkpoints.files import header, metadata, narrow, read_tensors
from kinema.checkpoints.gguf_file import MAX_HEADER, Gguf
from kinema.checkpoints.stream import Stream
from kinema.schema import BadRequest
from kinema.system.weights import NARROW, Weights

gguf = pytest.importorskip("gguf")
Type = gguf.GGMLQuantizationType
VALUES = np.random.default_rng(0).standard_normal((4, 512)).astype(np.float32)
QUANTISED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
RAW = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
"""Types that the package reads and cannot write: their bytes are random."""


def write(path: Path, *tensors: tuple, settings: dict | None = None, arch: str = "sd1") -> Path:
    """Write (name, array, type or None) tensors."""
    writer = gguf.GGUFWriter(str(path), arch)
    for name, value in (settings or {}).items():
        writer.add_array(name, value) if isinstance(value, list) else writer.add_string(name, value)
    for name, data, kind in tensors:
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_tensors_are_those_of_the_package(tmp_path: Path, kind: str) -> None:
    data = gguf.quantize(VALUES, Type[kind])
    path = write(tmp_path / "a.gguf", ("a.weight", data, Type[kind]), ("b.bias", VALUES[0], None))
    expected = torch.from_numpy(gguf.dequantize(data, Type[kind]))
    assert header(path) == {"a.weight": ((4, 512), torch.float32), "b.bias": ((512,), torch.float32)}
    assert torch.equal(read_tensors(path)["a.weight"], expected)
    assert torch.equal(Stream(path)["a.weight"], expected)
    assert float((expected - torch.from_numpy(VALUES)).abs().max()) < 0.5
    assert metadata(path)["general.architecture"] == "sd1"


def test_quantised_tensors_are_read_in_the_precision_that_is_asked_for(tmp_path: Path) -> None:
    data = gguf.quantize(VALUES, Type.Q8_0)
    path = write(tmp_path / "a.gguf", ("module.a.weight", data, Type.Q8_0), ("module.b.bias", VALUES[0], None))
    full, half = read_tensors(path), read_tensors(path, widened=torch.float16)
    assert (half["a.weight"].dtype, half["b.bias"].dtype) == (torch.float16, torch.float32)
    assert torch.equal(half["a.weight"], full["a.weight"].half())
    assert narrow(path) == {"a.weight"}
    assert Weights(path=path).stored == NARROW  # so that a GPU computes in half precision


def test_scaled_weights_are_read_in_the_precision_that_is_asked_for(tmp_path: Path) -> None:
    weight, scale = torch.tensor([[1.0, -2.0]]).to(torch.float8_e4m3fn), torch.tensor(0.3)
    save_file({"a.weight": weight, "a.scale_weight": scale, "b.weight": torch.ones(1)}, tmp_path / "a.safetensors")
    half = read_tensors(tmp_path / "a.safetensors", widened=torch.bfloat16)
    assert torch.equal(half["a.weight"], (weight.float() * scale).bfloat16())
    assert half["b.weight"].dtype == torch.float32
    assert narrow(tmp_path / "a.safetensors") == {"a.weight"}
    assert Weights(path=tmp_path / "a.safetensors").stored == NARROW


@pytest.mark.parametrize("kind", RAW)
def test_blocks_of_other_quantisations_are_read(tmp_path: Path, kind: str) -> None:
    block, width = gguf.GGML_QUANT_SIZES[Type[kind]]
    data = np.random.default_rng(1).integers(0, 60, (2, 512 // block * width), np.uint8)
    path = write(tmp_path / "a.gguf", ("a.weight", data, Type[kind]))
    expected = torch.from_numpy(gguf.dequantize(data, Type[kind]))
    assert header(path)["a.weight"][0] == (2, 512)
    torch.testing.assert_close(read_tensors(path)["a.weight"], expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (VALUES.astype(np.float16), torch.float16),
        (VALUES.astype(np.float64), torch.float64),
        (np.arange(6, dtype=np.int32).reshape(2, 3), torch.int32),
    ],
)
def test_plain_tensors_keep_their_dtype(tmp_path: Path, data: np.ndarray, dtype: torch.dtype) -> None:
    found = read_tensors(write(tmp_path / "a.gguf", ("a.weight", data, None)))["a.weight"]
    assert found.dtype == dtype
    assert torch.equal(found, torch.from_numpy(data))


def test_bfloat16_is_read_as_stored(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", ("a.weight", gguf.quantize(VALUES, Type.BF16), Type.BF16))
    found = read_tensors(path)["a.weight"]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, torch.from_numpy(VALUES).bfloat16())


def test_flattened_convolutions_get_their_shape_back(tmp_path: Path) -> None:
    weights = VALUES.reshape(8, 16, 4, 4)
    shape = {"comfy.gguf.orig_shape.a.weight": list(weights.shape)}
    data = gguf.quantize(weights.reshape(-1, 256), Type.Q8_0)
    path = write(tmp_path / "a.gguf", ("a.weight", data, Type.Q8_0), settings=shape)
    found = read_tensors(path)["a.weight"]
    assert found.shape == weights.shape
    assert torch.equal(found.flatten(), torch.from_numpy(gguf.dequantize(data, Type.Q8_0)).flatten())


@pytest.mark.parametrize("shape", [[8, 16, 4], [0, 16, 4, 4], [-8, -16, 4, 4], [2**31 - 1] * 8])
def test_a_false_original_shape_is_refused(tmp_path: Path, shape: list[int]) -> None:
    path = write(tmp_path / "a.gguf", ("a.weight", VALUES, None), settings={"comfy.gguf.orig_shape.a.weight": shape})
    with pytest.raises(BadRequest, match=r"states the original shape .* for 'a.weight', which has \[4, 512\]"):
        header(path)


# ------------------------------------------------------------------------------------------- damage


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path / "a.gguf", ("a.weight", VALUES[:2], None), ("b.weight", VALUES[2:], None))


def changed(path: Path, at: int, data: bytes) -> Path:
    whole = bytearray(path.read_bytes())
    whole[at : at + len(data)] = data
    path.write_bytes(whole)
    return path


@pytest.mark.parametrize(
    ("at", "data", "message"),
    [
        (0, b"GGUX", "does not begin with GGUF"),
        (4, struct.pack(">I", 3), "has GGUF version 50331648; expected 2 or 3"),
        (8, struct.pack("<Q", 2**60), "lists 1,152,921,504,606,846,976 tensors; expected at most"),
        (16, struct.pack("<Q", 2**60), "lists 1,152,921,504,606,846,976 settings; expected at most"),
        (8, struct.pack("<Q", 90_000), "not a valid GGUF file|not UTF-8|damaged header"),
        (16, struct.pack("<Q", 90_000), "not a valid GGUF file|not UTF-8|unknown type"),
        (24, struct.pack("<Q", 2**63), "not a valid GGUF file: its header is cut short or damaged"),
    ],
)
def test_false_counts_are_refused(small: Path, at: int, data: bytes, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        header(changed(small, at, data))


def place_of(path: Path, name: str) -> int:
    """The position after a tensor's name: axes u32, sizes u64, type u32, offset u64."""
    return path.read_bytes().index(name.encode()) + len(name)


@pytest.mark.parametrize(
    ("at", "data", "message"),
    [
        (24, struct.pack("<Q", 0), "overlaps another tensor"),
        (24, struct.pack("<Q", 2**50), r"ends after the file's [\d,]+ bytes"),
        (4, struct.pack("<QQ", 2**40, 2**40), r"ends after the file's|overlaps another"),
        (0, struct.pack("<I", 200), "expected at most 8 axes"),
        (20, struct.pack("<I", 4), "in the ggml type 4, which is not supported"),
        (20, struct.pack("<I", 9), "in the ggml type 9, which is not supported"),
    ],
)
def test_false_tensors_are_refused(small: Path, at: int, data: bytes, message: str) -> None:
    path = changed(small, place_of(small, "b.weight") + at, data)
    with pytest.raises(BadRequest, match=message):
        header(path)


def test_a_list_that_claims_more_than_the_header_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", ("a.weight", VALUES, None), settings={"tokens": ["x", "y", "z"]})
    at = path.read_bytes().index(b"tokens") + len("tokens") + 8
    with pytest.raises(BadRequest, match="not a valid GGUF file"):
        header(changed(path, at, struct.pack("<Q", 2**62)))


def test_lists_of_lists_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", ("a.weight", VALUES, None), settings={"tokens": ["x", "y", "z"]})
    at = path.read_bytes().index(b"tokens") + len("tokens") + 4
    with pytest.raises(BadRequest, match="a list of lists in its setting 'tokens'"):
        header(changed(path, at, struct.pack("<I", 9)))


def test_a_header_over_the_limit_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", ("a.weight", VALUES, None), settings={"about": "x" * MAX_HEADER})
    with pytest.raises(BadRequest, match="its header is longer than allowed"):
        header(path)


@pytest.mark.parametrize("keep", [0, 3, 20, 60, 200, 4000])
def test_a_cut_file_is_refused(small: Path, keep: int) -> None:
    small.write_bytes(small.read_bytes()[:keep])
    with pytest.raises(BadRequest):
        header(small)


def test_random_damage_is_read_or_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", ("a.weight", gguf.quantize(VALUES, Type.Q8_0), Type.Q8_0), settings={"x": "yz"})
    whole, chance, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(300)] = chance.randrange(256)
        path.write_bytes(data)
        try:
            found = Gguf.read(path)
            assert all(found.tensor(name).shape == entry.shape for name, entry in found.entries.items())
        except BadRequest:
            refused += 1
    assert 100 < refused < 400


def test_without_the_package_the_extra_is_named(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(BadRequest, match=r"needs the gguf package: pip install 'kinema\[gguf\]'"):
        header(small)
