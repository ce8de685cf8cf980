"""What the benchmark records of a call: products with their operations, seconds by kind, and the attainable."""

from __future__ import annotations

import importlib
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kinema.nn import attention, linear

ROOT = Path(__file__).parents[1]


@pytest.fixture
def vs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    torch.set_num_threads(1)
    return [importlib.import_module(f"benchmarks.vs.{name}") for name in ("recorded", "attainable")]


def products(recorded, call, *networks):
    """The products of a call: (kind, operations, calls)."""
    with torch.no_grad():
        _, recording = recorded.recorded(call, networks)
    return {(product.kind, product.operations): calls for product, calls in recording.products.items()}


def test_products_are_counted_by_their_operations(vs):
    recorded, _ = vs
    linear, x = nn.Linear(24, 40), torch.randn(2, 5, 24)
    assert products(recorded, lambda: linear(x), linear) == {("linear", 2 * 10 * 24 * 40): 1}
    assert products(recorded, lambda: linear.bfloat16()(x.bfloat16()), linear.bfloat16()) == {("linear", 19200): 1}
    strided = nn.Conv2d(8, 16, 3, stride=2, padding=1)
    image = torch.randn(2, 8, 10, 12)
    assert products(recorded, lambda: strided(image), strided) == {("convolution", 2 * 2 * 16 * 8 * 9 * 5 * 6): 1}
    over_time = nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0))
    clip = torch.randn(1, 8, 4, 6, 6)
    assert products(recorded, lambda: over_time(clip), over_time) == {("convolution", 2 * 8 * 8 * 3 * 4 * 36): 1}
    q, k = torch.randn(2, 3, 20, 8), torch.randn(2, 3, 70, 8)
    fused = products(recorded, lambda: F.scaled_dot_product_attention(q, k, k))
    assert fused == {("attention", 4 * 6 * 20 * 70 * 8): 1}
    assert products(recorded, lambda: torch.matmul(q, k.mT)) == {("attention", 2 * 6 * 20 * 70 * 8): 1}


def test_products_of_weights_by_hand_are_linear_layers(vs):
    """The package's feed-forward layers multiply parts of weights into a buffer."""
    recorded, _ = vs
    linear, x, out = nn.Linear(24, 40).requires_grad_(False), torch.randn(5, 24), torch.empty(5, 20)

    def call():
        torch.mm(x, linear.weight[:20].T, out=out)
        return out.addmm_(x, linear.weight[20:].T)

    assert products(recorded, call, linear) == {("linear", 2 * 5 * 24 * 20): 2}
    with torch.no_grad():
        packed = lambda: torch.ops.mkldnn._linear_pointwise(x, linear.weight, linear.bias, "none", [], "")  # noqa: E731
        assert products(recorded, packed) == {("linear", 2 * 5 * 24 * 40): 1}


def test_a_sum_by_a_row_of_ones_is_no_attention(vs):
    recorded, _ = vs
    x = torch.randn(3, 50, 8)
    assert not products(recorded, lambda: torch.matmul(x.new_ones(1, 50), x))


def test_both_threads_of_two_guidance_branches_are_recorded(vs):
    recorded, _ = vs
    linear, x = nn.Linear(256, 256).requires_grad_(False), torch.randn(512, 256)

    def call():
        other = threading.Thread(target=linear, args=(x,))
        other.start()
        out = linear(x)
        other.join()
        return out

    assert products(recorded, call, linear) == {("linear", 2 * 512 * 256 * 256): 2}
    assert recorded.at_the_same_time([1.0, 0.6, 0.01]) == 2
    assert recorded.at_the_same_time([]) == 1


def test_seconds_by_kind_add_up_to_the_whole(vs):
    recorded, attainable = vs
    linear, norm, x = nn.Linear(64, 64), nn.LayerNorm(64), torch.randn(800, 64)
    with torch.no_grad():
        _, recording = recorded.recorded(lambda: F.silu(norm(linear(x))).mul_(2).t().contiguous(), [linear])
    assert sum(recording.kinds.values()) == pytest.approx(recording.seconds)
    assert all(recording.kinds[kind] > 0 for kind in ("linear", "norms", "elementwise", "copies"))
    assert not recording.kinds["attention"]
    found = attainable.budget(recording, attainable.Attainable())
    assert found["operations"] == {"linear": 2 * 800 * 64 * 64, "convolution": 0, "attention": 0}
    assert found["alone"]["linear"] > 0
    assert not found["alone"]["attention"]


def test_the_attainable_is_the_fastest_kernel_times_the_calls(vs, monkeypatch):
    recorded, attainable = vs
    product = recorded.Product("linear", (8, 16, 24), "float32")
    recording = recorded.Recording()
    recording.products[product] = 3
    takes = {"first": [5, 9, 9], "fastest": [6, 4, 4], "dropped": [20, 1, 1]}
    measured = attainable.Attainable()
    monkeypatch.setattr(attainable, "kernels", lambda *_: list(takes))
    monkeypatch.setattr(measured, "timed", lambda name: takes[name].pop(0))
    assert measured.seconds(recording) == {"linear": 3 * 4, "convolution": 0, "attention": 0}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_kernel_of_a_product_computes_it(vs, dtype):
    """Kernels of other layouts take the same operands, so they return the same shape."""
    recorded, attainable = vs
    padded, none = ((1, 1), (1, 1), (1, 1), 1), ((1, 1), (0, 0), (1, 1), 1)
    in_time = ((1, 1, 1), (1, 0, 0), (1, 1, 1), 1)
    products = 3 if dtype == "float32" or linear.native(torch.bfloat16) else 2  # oneDNN's only where it has the type
    shapes = {
        ("linear", (10, 24, 40)): (400, products),
        ("convolution", ((2, 8, 6, 6), (16, 8, 3, 3)), padded): (2 * 16 * 36, 2),
        ("convolution", ((2, 8, 6, 6), (16, 8, 1, 1)), none): (2 * 16 * 36, 2 + products),
        ("convolution", ((1, 8, 4, 6, 6), (16, 8, 3, 1, 1)), in_time): (16 * 4 * 36, 2),
        ("attention", ((2, 3, 20, 8), (2, 3, 70, 8)), ("fused",)): (2 * 3 * 20 * 8, 2),
        ("attention", (6, 20, 8, 70)): (6 * 20 * 70, 2),
    }
    for (kind, sizes, *settings), (count, kernels) in shapes.items():
        product = recorded.Product(kind, sizes, dtype, *settings)
        calls = attainable.kernels(product, cold=False)
        with torch.no_grad():
            assert [call().numel() for call in calls] == [count] * kernels, product


def test_cold_weights_exceed_the_cache(vs, monkeypatch):
    _, attainable = vs
    monkeypatch.setattr(attainable, "cache_bytes", lambda: 10_000)
    kept = attainable.copies(lambda: torch.zeros(1000), cold=True)
    assert sum(weight.nbytes for weight in kept[1:]) >= 10_000
    assert len({weight.data_ptr() for weight in kept}) == len(kept)
    seen = []
    call = attainable.over(kept, lambda weight: seen.append(weight.data_ptr()))
    for _ in kept:
        call()
    assert len(set(seen)) == len(kept)
    assert len(attainable.copies(lambda: torch.zeros(1000), cold=False)) == 1


def test_products_of_keys_and_values_are_attention(vs, monkeypatch):
    """oneDNN's operator computes both linear layers and attention in float32."""
    recorded, _ = vs
    monkeypatch.setattr(attention, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: True)
    layer, q = linear.Linear(64, 48), torch.randn(1, 1, 512, 64)
    found = products(recorded, lambda: attention.attend(q, q + 1, layer(q)), layer)
    part = 2 * attention.FEWEST * 512
    assert found == {("linear", 2 * 512 * 64 * 48): 1, ("attention", part * 64): 2, ("attention", part * 48): 2}
