"""What is told of the CPU, with and without PyTorch's own account of it (from 2.11 on)."""

from __future__ import annotations

import pytest
import torch

from kinema import processor


def test_the_maker_is_told_where_pytorch_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [name in processor.maker() for name in ("Intel", "AMD")]
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert [name in processor.maker() for name in ("Intel", "AMD")] == expected


@pytest.mark.parametrize(
    ("told", "halves"),
    [
        ({}, None),
        ({"avx2": True}, None),
        ({"avx512_bf16": False, "amx_tile": False}, False),
        ({"avx512_bf16": False, "amx_tile": True}, True),
        ({"bf16": True}, True),
    ],
)
def test_units_are_those_that_are_told_of(
    told: dict[str, bool], halves: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert processor.has_units(torch.bfloat16) is halves
