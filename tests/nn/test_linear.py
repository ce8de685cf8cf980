"""Linear layers by oneDNN: the same results, and only where its operator applies and is faster."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kinema.nn import linear as module
from kinema.nn.linear import LEAST, Linear, adopt, linear, linear_gelu, mkl_is_fast, native, onednn_is_faster

has_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have oneDNN chosen on any CPU that has it; returns the activations with which it is called."""
    found: list[str] = []
    operator = torch.ops.mkldnn._linear_pointwise

    class Counted:
        @staticmethod
        def _linear_pointwise(x, weight, bias, activation, *others):
            found.append(activation)
            return operator(x, weight, bias, activation, *others)

    monkeypatch.setattr(torch.ops, "mkldnn", Counted)
    monkeypatch.setattr(module, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(module, "native", lambda dtype: dtype == torch.bfloat16)
    return found


def operands(rows: int = 300, width: int = 67, out: int = 61, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    return (x.to(dtype) for x in (torch.randn(3, rows, width), torch.randn(out, width) / 8, torch.randn(out)))


@has_onednn
@pytest.mark.parametrize("with_bias", [True, False])
def test_both_libraries_agree(calls, with_bias):
    x, weight, bias = operands()
    bias = bias if with_bias else None
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    with torch.no_grad():
        assert (linear(x, weight, bias) - exact).abs().max() <= 3e-6
        assert (linear_gelu(x, weight, bias) - F.gelu(exact)).abs().max() <= 3e-6
    assert calls == ["none", "gelu"]


@has_onednn
def test_rows_that_are_not_contiguous(calls):
    x, weight, bias = operands()
    turned = x.transpose(0, 1)
    with torch.no_grad():
        assert torch.allclose(linear(turned, weight, bias), F.linear(turned, weight, bias), atol=3e-6)
    assert calls


@pytest.mark.skipif(not native(torch.bfloat16), reason="oneDNN computes bfloat16 on CPUs that have it")
def test_gelu_in_bfloat16_rounds_once(calls):
    """Applied before rounding, it is closer to the exact result than GELU of the rounded product."""
    x, weight, bias = operands(dtype=torch.bfloat16)
    exact = F.gelu(F.linear(x.double(), weight.double(), bias.double()))
    with torch.no_grad():
        once, twice = linear_gelu(x, weight, bias), F.gelu(F.linear(x, weight, bias))
    assert calls == ["gelu"]
    error, other = ((y.double() - exact).square().mean().sqrt() for y in (once, twice))
    assert error <= 0.9 * other


@pytest.mark.parametrize(
    "kind",
    ["small", "float64", "gradient", "gradient of x", "gradient of the bias", "autocast", "meta", "mixed", "subclass"],
)
def test_what_onednn_cannot_compute_or_computes_slower_is_left_to_pytorch(calls, kind):
    x, weight, bias = operands()
    if kind == "small":
        x = x[:1, : LEAST // (67 * 61)]
    elif kind == "float64":
        x, weight, bias = x.double(), weight.double(), bias.double()
    elif kind == "gradient":
        weight = nn.Parameter(weight)
    elif kind == "gradient of x":
        x.requires_grad_()
    elif kind == "gradient of the bias":
        bias.requires_grad_()
    elif kind == "meta":
        x, weight, bias = x.to("meta"), weight.to("meta"), bias.to("meta")
    elif kind == "subclass":
        weight = type("Other", (torch.Tensor,), {})(weight)
    if kind == "mixed":
        with torch.no_grad(), pytest.raises(RuntimeError, match="dtype"):
            linear(x, weight.bfloat16(), bias)
    elif kind == "autocast":
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert linear(x, weight, bias).dtype == torch.bfloat16
    else:
        assert linear(x, weight, bias).shape == (*x.shape[:-1], 61)
        assert linear_gelu(x, weight, bias).shape == (*x.shape[:-1], 61)
    assert not calls


def test_gradients_are_those_of_pytorch(calls):
    x, weight, bias = operands()
    layer = Linear(67, 61)
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    layer(x).square().sum().backward()
    expected = nn.Parameter(weight.clone())
    F.linear(x, expected, bias).square().sum().backward()
    assert torch.equal(layer.weight.grad, expected.grad)
    assert not calls


@has_onednn
def test_layers_of_other_networks_are_adopted(calls):
    network = nn.Sequential(nn.Linear(67, 61), nn.LayerNorm(61), nn.Sequential(nn.Linear(61, 67)))
    x, *_ = operands()
    with torch.no_grad():
        expected = network(x)
        assert not calls
        adopt(network)
        assert torch.allclose(network(x), expected, atol=1e-5)
    assert calls == ["none", "none"]


@pytest.mark.parametrize(
    ("name", "mkl", "capability", "fast", "faster"),
    [
        ("AMD EPYC", True, "AVX512", False, True),
        ("AMD EPYC", True, "AVX2", False, False),
        ("Intel(R) Xeon(R)", True, "AVX512", True, False),
        ("Intel(R) Xeon(R)", False, "AVX512", False, True),
    ],
)
def test_onednn_is_chosen_where_mkl_lacks_the_wide_units(monkeypatch, name, mkl, capability, fast, faster):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name}, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(module, "mkl_is_fast", mkl_is_fast.__wrapped__)
    assert mkl_is_fast.__wrapped__() is fast
    assert onednn_is_faster.__wrapped__() is faster
