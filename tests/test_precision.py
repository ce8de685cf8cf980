"""Halves on a processor without units for them: weights are rounded as asked, and computed with in float32."""

from __future__ import annotations

import pytest
import torch

from kinema.api import load
from kinema.schema import Note, Request
from kinema.system import arithmetic

ASK = Request(prompt="a red ball rolls right", seed=1, steps=1)


@pytest.fixture
def processor(monkeypatch):
    def of(**units):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)

    return of


def test_the_arithmetic_is_what_the_processor_is_fast_and_exact_in(processor):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    processor(avx512_bf16=False, amx_bf16=False)
    assert arithmetic(torch.bfloat16, cpu) == torch.float32
    assert arithmetic(torch.bfloat16, gpu) == torch.bfloat16
    assert arithmetic(torch.float64, cpu) == torch.float64
    assert arithmetic(torch.float16, cpu) == torch.float16  # not told of its units: left as asked
    processor(avx512_bf16=True, amx_bf16=False)
    assert arithmetic(torch.bfloat16, cpu) == torch.bfloat16
    processor()
    assert arithmetic(torch.bfloat16, cpu) == torch.bfloat16


def test_weights_are_rounded_and_it_is_said_and_recorded(processor):
    processor(avx512_bf16=False)
    model, plain = load("zoetrope", dtype=torch.bfloat16), load("zoetrope")
    said = []
    clip = model.run(ASK, on_event=said.append)
    for ours, exact in zip(model.system.model.parameters(), plain.system.model.parameters(), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, exact.to(torch.bfloat16).float())
    assert clip.recipe["dtype"] == "bfloat16"
    assert any("no units for bfloat16" in event.message for event in said if isinstance(event, Note))


def test_weights_that_take_turns_are_rounded_too(processor):
    processor(avx512_bf16=False)
    whole, turns = load("zoetrope", dtype=torch.bfloat16), load("zoetrope", dtype=torch.bfloat16, offload="block")
    assert torch.equal(whole.run(ASK).video, turns.run(ASK).video)
