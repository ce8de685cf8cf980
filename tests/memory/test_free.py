"""Memory of accelerators, with PyTorch's answers faked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from kinema.api import load
from kinema.job import build_job
from kinema.memory import free
from kinema.memory.plan import Needs
from kinema.schema import Request

MPS = torch.device("mps")


@pytest.fixture
def apple(monkeypatch):
    amounts = {"recommended_max_memory": 1000, "driver_allocated_memory": 300, "current_allocated_memory": 200}
    for name, amount in amounts.items():
        monkeypatch.setattr(torch.mps, name, lambda amount=amount: amount)


def test_memory_cached_by_torch_s_allocator_is_free(apple):
    assert free.free_bytes("mps") == 1000 - 300 + 100
    assert free.total_bytes("mps") == 1000
    assert free.peak_bytes("mps") == 300


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_other_gpus_report_free_total_and_peak_memory(kind, monkeypatch):
    gpu = SimpleNamespace(
        mem_get_info=lambda _device: (500, 900),
        memory_reserved=lambda _device: 80,
        memory_allocated=lambda _device: 50,
        max_memory_allocated=lambda _device: 70,
    )
    monkeypatch.setattr(torch, kind, gpu)
    assert free.free_bytes(f"{kind}:1") == 530
    assert free.total_bytes(kind) == 900
    assert free.peak_bytes(kind) == 70


def test_a_cpu_has_no_total():
    assert free.total_bytes("cpu") is None


def test_an_apple_gpu_offloads_to_the_weight_file_like_a_cpu():
    levels = {}
    for device in ("cpu", "mps", "cuda"):
        system = load("svd", preset="tiny").system
        object.__setattr__(system, "device", torch.device(device))
        (work,) = build_job(system, Request(seed=1, steps=1))
        levels[device] = Needs(system, work.stage.whole, work.canvas).levels
    assert levels["mps"] == levels["cpu"] == ("none",)
    assert len(levels["cuda"]) > 1
