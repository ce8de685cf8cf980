"""Winograd's convolution: exact in its mathematics, as near as PyTorch's in float32, and taken only where it serves."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kinema.families.svd import layers
from kinema.nn import ldm_unet, winograd


@pytest.fixture(autouse=True)
def products_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the processors where it is taken, also where these tests run on another."""
    monkeypatch.setattr(winograd, "products_are_fast", lambda: True)


def layer(channels: int, out: int, *, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, out, 3, padding=1, bias=bias).to(memory_format=torch.channels_last)


def test_one_line_is_the_sum_it_stands_for() -> None:
    """``Aᵀ ((G g) ⊙ (Bᵀ d))`` is the correlation of six inputs with three taps, for every unit vector."""
    into, spread, out_of = winograd.matrices()
    for tap in range(3):
        for place in range(6):
            g, d = torch.eye(3)[tap], torch.eye(6)[place]
            expected = torch.tensor([float(i + tap == place) for i in range(4)])
            assert torch.allclose(out_of @ ((spread @ g) * (into @ d)), expected, atol=2e-6)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(
    ("images", "channels", "out", "height", "width"),
    [(1, 8, 8, 4, 4), (3, 16, 24, 20, 12), (2, 24, 8, 48, 52), (37, 8, 8, 8, 8), (1, 4, 4, 4, 600)],
    ids=["one tile", "few", "rows in strips", "images in strips", "a line longer than a strip"],
)
def test_equals_the_convolution(images: int, channels: int, out: int, height: int, width: int, silu: bool) -> None:
    conv = layer(channels, out)
    x = torch.randn(images, channels, height, width).contiguous(memory_format=torch.channels_last)
    before = F.silu(x) if silu else x
    with torch.no_grad():
        made = winograd.convolve(conv, x, silu=silu)
        expected = F.conv2d(before.double(), conv.weight.double(), conv.bias.double(), padding=1)  # type: ignore[union-attr]
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(made.double(), expected, atol=1e-5)


def test_without_a_bias_and_of_a_map_in_another_order_of_memory() -> None:
    conv, x = layer(8, 12, bias=False), torch.randn(2, 8, 8, 16)
    with torch.no_grad():
        assert torch.allclose(winograd.convolve(conv, x), conv(x), atol=1e-5)


def test_loses_little_more_than_the_sum_itself() -> None:
    """256 channels of unit variance: at most 2.5 times the deviation of PyTorch's own convolution from float64."""
    conv = layer(256, 256, bias=False)
    x = torch.randn(1, 256, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        exact = F.conv2d(x.double(), conv.weight.double(), padding=1)
        of_ours, of_torch = winograd.convolve(conv, x).double() - exact, conv(x).double() - exact
    assert of_ours.std() < 2.5 * of_torch.std()


def test_a_residual_block_takes_it_and_gives_the_same() -> None:
    torch.manual_seed(1)
    block = ldm_unet.ResBlock(128, 128)
    ldm_unet.channels_last(block)
    x = torch.randn(1, 128, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert winograd.pays(block.conv1, x)
        made = block(x.clone())
    expected = block(x)  # with a gradient: PyTorch's convolution
    assert not torch.equal(made, expected)
    assert torch.allclose(made, expected, atol=2e-5)


def test_is_left_alone_where_it_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 128, 64, 64)
    with torch.no_grad():
        assert winograd.pays(layer(128, 128), x)
        assert not winograd.pays(layer(64, 128), x[:, :64])
        assert not winograd.pays(layer(128, 128), x[:, :, :32, :32])  # few places
        assert not winograd.pays(layer(128, 128), x[:, :, :, :62])  # tiles that would be cut
        assert not winograd.pays(layer(128, 128).double(), x.double())
        assert not winograd.pays(nn.Conv2d(128, 128, 3, 2, 1), x)
        assert not winograd.pays(nn.Conv2d(128, 128, 1), x)
        assert not winograd.pays(nn.Conv2d(128, 128, 3, padding=1, padding_mode="circular"), x)
        assert not winograd.pays(layer(128, 128), x.to("meta"))
        with torch.autocast("cpu", torch.bfloat16):
            assert not winograd.pays(layer(128, 128), x)
        monkeypatch.setattr(winograd, "products_are_fast", lambda: False)
        assert not winograd.pays(layer(128, 128), x)
    assert not winograd.pays(layer(128, 128), x)


@pytest.mark.parametrize(("clips", "frames", "places"), [(1, 8, 30), (2, 14, 9), (1, 25, 5), (3, 7, 1), (1, 1, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_along_time_equals_the_convolution(clips: int, frames: int, places: int, bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv3d(12, 20, (3, 1, 1), padding=(1, 0, 0), bias=bias)
    whole = torch.randn(clips, frames, 2 * places, 12).permute(0, 3, 1, 2)
    with torch.no_grad():
        call = winograd.over_time(conv)
        for strip in (whole, whole[..., :places], whole[..., places:]):
            made = call(strip)
            expected = conv.double()(strip.double()[..., None])[..., 0]
            conv.float()
            assert made.shape == expected.shape
            assert torch.allclose(made.double(), expected, atol=1e-5)


def test_a_temporal_block_takes_it_in_strips_and_gives_the_same() -> None:
    torch.manual_seed(1)
    block = layers.TemporalResBlock(128, None, 1e-5)
    x = torch.randn(1, 8, 1024, 128).permute(0, 3, 1, 2)
    with torch.no_grad():
        assert len(layers.strips_of(x)) > 1
        assert winograd.pays_over_time(block.conv1, x)
        assert not winograd.pays_over_time(block.conv1, x[:, :, :4])
        made = block.add_to(x.clone(memory_format=torch.preserve_format), torch.tensor(0.3))
    expected = x + 0.3 * block(x)
    assert torch.allclose(made, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("told", "mkl", "fast"),
    [
        ({"cpu_name": "Intel Xeon Platinum"}, True, True),
        ({"cpu_name": "Intel Xeon Platinum"}, False, False),
        ({"cpu_name": "AMD EPYC"}, True, False),
    ],
)
def test_products_are_fast_with_mkl_on_intels_processors(
    told: dict, mkl: bool, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the fixture above
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    assert winograd.products_are_fast.__wrapped__() == fast
