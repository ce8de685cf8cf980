"""CPU and accelerator capabilities, with and without PyTorch's report (2.11 and later)."""

from __future__ import annotations

import pytest
import torch

from kinema import processor
from kinema.schema import BadRequest


def test_the_vendor_is_found_without_pytorchs_report(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [name in processor.cpu_name() for name in ("Intel", "AMD")]
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert [name in processor.cpu_name() for name in ("Intel", "AMD")] == expected


@pytest.mark.parametrize(
    ("reported", "native"),
    [
        ({}, None),
        ({"avx2": True}, None),
        ({"avx512_bf16": False, "amx_tile": False}, False),
        ({"avx512_bf16": False, "amx_tile": True}, True),
        ({"bf16": True}, True),
    ],
)
def test_native_precision_follows_the_reported_capabilities(
    reported: dict[str, bool], native: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: reported, raising=False)
    assert processor.is_native(torch.bfloat16) is native


# ------------------------------------------------------------------------------------- devices


def test_accelerators_come_before_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert processor.device_of(None) == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert processor.accelerators() == ["mps"]
    assert processor.device_of(None) == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert processor.accelerators() == ["cuda:0", "cuda:1", "mps"]
    assert processor.device_of(None) == torch.device("cuda")


def test_unsupported_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "accelerators", lambda: ["mps"])
    for name in ("meta", "cpu:x", "tpu", "cpu\n"):
        with pytest.raises(BadRequest, match="expected cpu or mps"):
            processor.device_of(name)
    assert processor.device_of("cpu") == processor.device_of(torch.device("cpu")) == torch.device("cpu")


def test_bfloat16_is_native_from_a_hardware_generation_on(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, mps = torch.device("cuda", 1), torch.device("mps")
    for generation, has in ((7, False), (8, True), (9, True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device, major=generation: (major, 5))
        assert processor.is_native_on(cuda, torch.bfloat16) is has
    for macos, has in ((13, False), (14, True)):
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, _minor, here=macos: here >= major)
        assert processor.is_native_on(mps, torch.bfloat16) is has
    for device, dtype in ((cuda, torch.float16), (mps, torch.float16), (cuda, torch.float32)):
        assert processor.is_native_on(device, dtype)


def test_apple_gpus_lack_float64() -> None:
    assert processor.widest(torch.device("mps")) == torch.float32
    assert processor.widest(torch.device("cuda")) == processor.widest(torch.device("cpu")) == torch.float64


def test_only_float64_is_narrowed_for_a_device_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    meta = torch.device("meta")
    assert processor.to_device(torch.zeros(1, dtype=torch.float64), meta).dtype == torch.float64
    monkeypatch.setattr(processor, "NO_FLOAT64", ("meta",))
    assert processor.to_device(torch.zeros(1, dtype=torch.float64), meta).dtype == torch.float32
    assert processor.to_device(torch.zeros(1, dtype=torch.float16), meta).dtype == torch.float16
    assert processor.to_device(torch.zeros(1, dtype=torch.int64), meta).dtype == torch.int64
