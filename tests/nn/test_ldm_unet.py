"""Shared layers of latent-diffusion U-Nets: optimised paths give the same results."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kinema.nn import ldm_unet
from kinema.nn.ldm_unet import TransformerBlock, Upsample


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_upsampling_by_four_small_convolutions_equals_convolving_the_upsampled_map(layout):
    torch.manual_seed(0)
    up = Upsample(6).double()
    x = torch.randn(2, 6, 5, 3, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_(True)
    expected = up.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
    out = up(x)
    assert out.shape == expected.shape
    assert (out - expected).abs().max() <= 1e-12
    grads = [torch.autograd.grad(y.square().sum(), [x, *up.parameters()]) for y in (out, expected)]
    assert all((a - b).abs().max() <= 1e-9 for a, b in zip(*grads, strict=True))


def test_upsampling_to_a_given_size():
    up = Upsample(4)
    assert up(torch.randn(1, 4, 3, 3), size=(5, 6)).shape == (1, 4, 5, 6)


def test_frames_share_the_context_of_their_clip():
    """Two clips of three frames with one context per clip equal six frames with a context each."""
    torch.manual_seed(0)
    block = TransformerBlock(8, 2, 5).double().requires_grad_(False)
    x, context = torch.randn(6, 4, 8, dtype=torch.float64), torch.randn(2, 7, 5, dtype=torch.float64)
    out = block(x.clone(), context)
    separate = torch.cat([block(x[i : i + 1].clone(), context[i // 3 : i // 3 + 1]) for i in range(6)])
    assert (out - separate).abs().max() <= 1e-12


def seven_rows(monkeypatch) -> list[int]:
    """Have the cost model choose seven rows at a time; return the rows of each chunk added in place."""
    monkeypatch.setattr(ldm_unet, "rows_at_once", lambda *_: 7)
    parts: list[int] = []
    add_to = ldm_unet.FeedForward._add_to

    def counted(self, out_RC, x_RC, chunk):
        parts.extend(len(part) for part in x_RC.split(chunk))
        add_to(self, out_RC, x_RC, chunk)

    monkeypatch.setattr(ldm_unet.FeedForward, "_add_to", counted)
    return parts


@pytest.mark.parametrize(("chunk", "rows"), [(None, [7] * 5 + [1]), (5, [5] * 7 + [1])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunked_feed_forward_equals_one_pass(chunk, rows, dtype, monkeypatch):
    parts = seven_rows(monkeypatch)
    torch.manual_seed(0)
    layer, x = ldm_unet.FeedForward(16).to(dtype), torch.randn(2, 3, 6, 16, dtype=dtype)
    layer.chunk = chunk
    before, residual = x.clone(), torch.randn_like(x)
    one_pass = residual + layer.net[2](layer.net[0](x))
    with torch.no_grad():
        out = layer(x, onto=residual)
    assert torch.equal(x, before)
    assert out is residual
    assert parts == rows
    assert torch.allclose(out, one_pass, atol=1e-6 if dtype == torch.float32 else 0.01)


def test_half_precision_feed_forward_is_as_accurate_in_chunks_as_in_one_pass(monkeypatch):
    seven_rows(monkeypatch)
    torch.manual_seed(0)
    layer, x, residual = ldm_unet.FeedForward(16), torch.randn(512, 16), 3 * torch.randn(512, 16)
    layer, x, residual = layer.bfloat16(), x.bfloat16(), residual.bfloat16()
    one_pass = (residual + layer.net[2](layer.net[0](x))).detach()
    with torch.no_grad():
        out = layer(x, onto=residual.clone())
        exact = residual.double() + layer.double()(x.double(), torch.zeros(512, 16).double())
    error, most = ((y.double() - exact).abs().mean() for y in (out, one_pass))
    assert error <= 1.05 * most


@pytest.mark.parametrize("kind", ["strided", "autocast", "gradient"])
def test_feed_forward_falls_back_where_chunks_cannot_be_added_in_place(kind, monkeypatch):
    """With a gradient the sum is a new tensor, otherwise it overwrites the residual."""
    parts = seven_rows(monkeypatch)
    torch.manual_seed(0)
    layer, x, residual = ldm_unet.FeedForward(16), torch.randn(2, 3, 6, 16), torch.randn(2, 3, 6, 16)
    expected = residual.double() + layer.double().net[2](layer.net[0](x.double()))
    layer.float()
    if kind == "strided":
        residual = residual.transpose(1, 2).contiguous().transpose(1, 2)
    if kind == "gradient":
        residual.requires_grad_(True)
        out = layer(x, onto=residual)
        out.sum().backward()
        assert torch.equal(residual.grad, torch.ones_like(residual))
        assert layer.net[2].bias.grad.eq(36).all()
    else:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            out = layer(x, onto=residual)
        assert out.data_ptr() == residual.data_ptr()
    assert not parts
    assert out.dtype == torch.float32
    assert torch.allclose(out.double(), expected, atol=0.02 if kind == "autocast" else 1e-6)


def test_feed_forward_calls_layers_that_are_hooked_or_replaced(monkeypatch):
    """The optimised path must not bypass hooks or replaced layers."""
    parts = seven_rows(monkeypatch)
    torch.manual_seed(0)
    layer, x = ldm_unet.FeedForward(16), torch.randn(40, 16)

    def output() -> torch.Tensor:
        return layer(x, onto=torch.zeros(40, 16))

    with torch.no_grad():
        hook = layer.net[0].register_forward_hook(lambda _layer, _inputs, out: torch.zeros_like(out))
        assert torch.allclose(output(), layer.net[2].bias.expand(40, -1))
        hook.remove()
    layer.net[2] = torch.nn.Sequential(layer.net[2], torch.nn.Tanh())
    with torch.no_grad():
        assert output().abs().max() <= 1
        assert torch.allclose(output(), layer.net[2](layer.net[0](x)), atol=1e-6)
    assert not parts


@pytest.mark.parametrize(
    ("grad", "size", "computed"),
    [(False, (6, 5), torch.float32), (False, (16, 33), torch.bfloat16), (True, (6, 5), torch.bfloat16)],
    ids=["small", "large", "trained"],
)
def test_half_precision_group_norm_is_correct(grad, size, computed, monkeypatch):
    torch.manual_seed(0)
    norm = ldm_unet.group_norm(64, 1e-5).bfloat16()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 64, *size).bfloat16().contiguous(memory_format=torch.channels_last)
    expected = F.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double(), norm.eps)
    seen, plain = [], F.group_norm
    monkeypatch.setattr(F, "group_norm", lambda x, *rest: seen.append(x.dtype) or plain(x, *rest))
    with torch.set_grad_enabled(grad):
        out = norm(x)
    assert seen == [computed]
    assert out.dtype == torch.bfloat16
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.requires_grad == grad
    assert torch.allclose(out.double(), expected, rtol=2**-7, atol=1e-3)
