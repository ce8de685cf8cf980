"""Attention by plain products and by heads equals its formula, and fused attention where that is used."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kinema.nn import attention


@pytest.mark.parametrize(
    ("batch", "queries", "keys"), [((1, 2), 9, 8), ((1, 2), 700, 77), ((3, 2), 40, 77), ((2,), 5, 81)]
)
def test_attention_by_plain_products_is_correct(batch, queries, keys, monkeypatch):
    """Few keys; a prompt's keys with a smaller last chunk; many heads; more keys."""
    monkeypatch.setattr(attention, "WEIGHTS", 77 * 2 * 300)
    torch.manual_seed(0)
    q, k, v = (torch.randn(*batch, n, 6) for n in (queries, keys, keys))
    with torch.no_grad():
        out = attention.attend(q, k, v)
    expected = (q.double() @ k.double().transpose(-1, -2) / 6**0.5).softmax(-1) @ v.double()
    assert torch.allclose(out.double(), expected, atol=1e-5)
    assert torch.allclose(attention.attend(q.requires_grad_(), k, v).double(), expected, atol=1e-5)


@pytest.mark.parametrize("deviation", [0.5, 1, 4, 16])
def test_half_precision_attention_by_heads_is_correct(deviation, monkeypatch):
    """With a smaller last chunk, and as accurate as fused attention even for large logits."""
    monkeypatch.setattr(attention, "FEWEST", 50)
    monkeypatch.setattr(attention, "fused_uses_amx", lambda: False)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 3, 16).transpose(1, 2) for n in (130, 90, 90))
    q, k, v = (x.bfloat16() for x in (q * deviation**0.5, k * deviation**0.5, v))
    fused = F.scaled_dot_product_attention(q, k, v)
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    with torch.no_grad():
        out = attention.attend(q, k, v)
    expected = (q.double() @ k.double().transpose(-1, -2) / 4).softmax(-1) @ v.double()
    assert (out.shape, out.dtype) == (expected.shape, torch.bfloat16)
    error, fused_error = ((x.double() - expected).square().mean().sqrt() for x in (out, fused))
    assert error <= 3 * fused_error


def test_a_head_of_large_logits_does_not_change_the_others(monkeypatch):
    """Clips of a batch, and heads, are computed apart: the second product is of the heads that need it."""
    monkeypatch.setattr(attention, "fused_uses_amx", lambda: False)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 3, 16).bfloat16().transpose(1, 2) for n in (130, 90, 90))
    with torch.no_grad():
        before = attention.attend(q, k, v)
        q[1, 2] *= 30
        after = attention.attend(q, k, v)
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1, :2], before[1, :2])
    assert not torch.equal(after[1, 2], before[1, 2])


def test_half_precision_attention_by_heads_compiles_to_one_operator(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(attention, "fused_uses_amx", lambda: False)
    q, k, v = (torch.randn(2, n, 3, 16).bfloat16().transpose(1, 2) for n in (130, 90, 90))
    seen = []

    def backend(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    with torch.no_grad():
        out = torch.compile(attention.attend, backend=backend, fullgraph=True)(q, k, v)
        assert torch.equal(out, attention.attend(q, k, v))
    assert [name for name in seen if name.startswith("kinema")] == ["kinema.attend_by_heads"]


@pytest.mark.parametrize("kind", ["inference", "gradient", "autocast", "MKL is fast", "few keys"])
def test_float32_attention_by_heads_is_correct_and_used_for_inference_with_many_keys(kind, monkeypatch):
    """With a smaller last part, another number of keys than queries, and values of another width."""
    calls = []
    by_heads = attention._by_heads_in_float32
    monkeypatch.setattr(attention, "_by_heads_in_float32", lambda *x: calls.append(1) or by_heads(*x))
    monkeypatch.setattr(attention, "onednn_is_faster", lambda: kind != "MKL is fast")
    monkeypatch.setattr(attention, "FEWEST", 100 if kind == "few keys" else 50)
    monkeypatch.setattr(attention, "LOGITS", 40 * 90)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 3, d).transpose(1, 2) for n, d in ((330, 16), (90, 16), (90, 24)))
    with torch.set_grad_enabled(kind == "gradient"), torch.autocast("cpu", enabled=kind == "autocast"):
        out = attention.attend(q, 3 * k, v)
    expected = (q.double() @ (3 * k).double().transpose(-1, -2) / 4).softmax(-1) @ v.double()
    assert torch.allclose(out.double(), expected, atol=0.05 if kind == "autocast" else 1e-5)
    assert bool(calls) == (kind == "inference")
