"""Devices and precisions on the command line; accelerators are simulated."""

from __future__ import annotations

import pytest
import torch

from kinema import processor
from kinema.cli import doctor, machine
from kinema.cli.main import main

PLAN = ["plan", "a red ball", "--no-measure"]


@pytest.fixture
def devices(monkeypatch):
    """Simulated accelerators of these names, with 3 of 4 GiB free; bfloat16 needs ``generation`` 8 or ``macos`` 14."""

    def of(*names, generation=7, macos=13):
        monkeypatch.setattr(processor, "accelerators", lambda: list(names))
        monkeypatch.setattr(processor, "device_of", lambda name: torch.device(name or names[0]))
        monkeypatch.setattr(processor, "device_name", lambda device: f"The {device.type}")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (generation, 0))
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, _minor: macos >= major)
        monkeypatch.setattr("kinema.memory.free.free_bytes", lambda _device: 3 * 2**30)
        monkeypatch.setattr("kinema.memory.plan.free_bytes", lambda _device: 3 * 2**30)
        monkeypatch.setattr("kinema.forecast.free_bytes", lambda _device: 3 * 2**30)
        monkeypatch.setattr("kinema.memory.free.total_bytes", lambda name: None if name == "cpu" else 4 * 2**30)
        monkeypatch.setattr(machine, "lacking", lambda _device: [])

    return of


def test_a_gpu_is_described_by_memory_and_precisions(devices):
    devices("cuda:0", generation=8)
    assert machine.about_device("cuda:0") == (
        "The cuda, 3.00 GiB free of 4.00 GiB; cuda:0 has native bfloat16 and float16; models compute in the precision "
        "of their files, and with --dtype auto in float16 for float16 files, bfloat16 for bfloat16 and float32 files",
        True,
    )


def test_an_older_gpu_computes_bfloat16_files_in_float32(devices):
    devices("cuda:0")
    text, _ = machine.about_device("cuda:0")
    assert "cuda:0 has native float16 but no native bfloat16" in text
    assert "models compute in float16 for float16 files, float32 for bfloat16 and float32 files" in text


@pytest.mark.parametrize(
    ("units", "sentence"),
    [
        ({"avx512_bf16": False, "avx512_fp16": False}, "this CPU has no native bfloat16 or float16; models compute in"),
        ({"avx512_bf16": True, "avx512_fp16": False}, "float32, and with --dtype auto in bfloat16"),
        ({}, "PyTorch does not report whether this CPU has native bfloat16 or float16"),
    ],
)
def test_native_half_precisions_of_a_cpu_are_reported(units, sentence, devices, monkeypatch):
    devices()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    assert sentence in machine.about_device("cpu")[0]


def test_operators_and_precisions_that_an_apple_gpu_lacks_are_listed(devices, monkeypatch):
    devices("mps")
    text, complete = machine.about_device("mps")
    assert complete
    assert "it lacks float64, so schedules are computed on the CPU" in text
    assert "no native bfloat16" in text
    monkeypatch.setattr(machine, "lacking", lambda _device: ["conv3d", "fft"])
    text, complete = machine.about_device("mps")
    assert not complete
    assert "lacks operators for it that some models need: conv3d, fft; set PYTORCH_ENABLE_MPS_FALLBACK=1" in text
    devices("mps", macos=14)
    assert "mps has native bfloat16 and float16" in machine.about_device("mps")[0]


def test_operators_that_raise_are_found(monkeypatch):
    assert machine.lacking(torch.device("cpu")) == []

    def broken(_device):
        raise NotImplementedError

    monkeypatch.setattr(machine, "probes", lambda: {"conv3d": broken, "fft": abs})
    assert machine.lacking(torch.device("cpu")) == ["conv3d", "fft"]  # abs of a device is a TypeError


def test_doctor_has_a_line_for_every_device(devices, capsys, monkeypatch):
    devices("cuda:0", "mps")
    monkeypatch.setattr(doctor, "CHECKS", {"torch": lambda: ("ok", ""), "disk": lambda: ("ok", "")})
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", x] for x in ("torch", "cpu", "cuda:0", "mps", "disk")]
    assert "The mps, 3.00 GiB free of 4.00 GiB" in lines[3]


def test_a_plan_reports_and_counts_the_chosen_precision(devices, capsys):
    devices("cuda:0", generation=8)
    assert main([*PLAN, "-m", "animatediff-pocket"]) == 0
    text = capsys.readouterr().out
    assert " on cuda:0 in float16, " in text
    assert "computes in float16, as its weights are stored in float16" in text
    assert "parameters × 2 bytes" in text
    assert main([*PLAN, "-m", "animatediff-pocket", "--dtype", "fp32"]) == 0
    text = capsys.readouterr().out
    assert " on cuda:0 in float32, " in text
    assert "computes in" not in text


def test_auto_is_an_option_of_dtype(capsys, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    assert main([*PLAN, "-m", "vdm/tiny", "--device", "cpu", "--dtype", "auto"]) == 0
    assert "computes in float32: this CPU has no native bfloat16" in capsys.readouterr().out
    assert machine.dtype("auto") == "auto"
    assert machine.dtype("bf16") == torch.bfloat16


def test_a_missing_device_is_one_line(capsys):
    assert main(["generate", "a", "--device", "xpu:7"]) == 2
    assert "this machine has no device 'xpu:7'; expected cpu" in capsys.readouterr().err
