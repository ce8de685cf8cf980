"""Winograd convolutions: correct, almost as accurate as PyTorch's, and used only where they are faster."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kinema.families.svd import layers
from kinema.nn import ldm_unet, winograd


@pytest.fixture(autouse=True)
def mkl_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enables Winograd convolutions on any CPU."""
    monkeypatch.setattr(winograd, "mkl_is_fast", lambda: True)


def layer(channels: int, out: int, *, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, out, 3, padding=1, bias=bias).to(memory_format=torch.channels_last)


def test_one_dimension_is_a_correlation() -> None:
    """``Aᵀ ((G g) ⊙ (Bᵀ d))`` is the correlation of six inputs with three taps, for every unit vector."""
    into, spread, out_of = winograd.matrices()
    for tap in range(3):
        for position in range(6):
            g, d = torch.eye(3)[tap], torch.eye(6)[position]
            expected = torch.tensor([float(i + tap == position) for i in range(4)])
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
        result = winograd.convolve(conv, x, silu=silu)
        expected = F.conv2d(before.double(), conv.weight.double(), conv.bias.double(), padding=1)  # type: ignore[union-attr]
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(result.double(), expected, atol=1e-5)


def test_without_a_bias_and_with_a_contiguous_map() -> None:
    conv, x = layer(8, 12, bias=False), torch.randn(2, 8, 8, 16)
    with torch.no_grad():
        assert torch.allclose(winograd.convolve(conv, x), conv(x), atol=1e-5)


def test_rounding_errors_are_bounded() -> None:
    """For 256 channels of unit variance: at most 2.5 times PyTorch's error."""
    conv = layer(256, 256, bias=False)
    x = torch.randn(1, 256, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        exact = F.conv2d(x.double(), conv.weight.double(), padding=1)
        own_error, torch_error = winograd.convolve(conv, x).double() - exact, conv(x).double() - exact
    assert own_error.std() < 2.5 * torch_error.std()


def test_a_residual_block_uses_it_with_the_same_result() -> None:
    torch.manual_seed(1)
    block = ldm_unet.ResBlock(128, 128)
    ldm_unet.channels_last(block)
    x = torch.randn(1, 128, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert winograd.is_faster(block.conv1, x)
        result = block(x.clone())
    expected = block(x)  # with a gradient: PyTorch's convolution
    assert not torch.equal(result, expected)
    assert torch.allclose(result, expected, atol=2e-5)


def test_is_not_used_where_it_is_slower_or_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 128, 64, 64)
    with torch.no_grad():
        assert winograd.is_faster(layer(128, 128), x)
        assert not winograd.is_faster(layer(64, 128), x[:, :64])
        assert not winograd.is_faster(layer(128, 128), x[:, :, :32, :32])  # few positions
        assert not winograd.is_faster(layer(128, 128), x[:, :, :, :62])  # tiles that would be cut
        assert not winograd.is_faster(layer(128, 128).double(), x.double())
        assert not winograd.is_faster(nn.Conv2d(128, 128, 3, 2, 1), x)
        assert not winograd.is_faster(nn.Conv2d(128, 128, 1), x)
        assert not winograd.is_faster(nn.Conv2d(128, 128, 3, padding=1, padding_mode="circular"), x)
        assert not winograd.is_faster(layer(128, 128), x.to("meta"))
        with torch.autocast("cpu", torch.bfloat16):
            assert not winograd.is_faster(layer(128, 128), x)
        monkeypatch.setattr(winograd, "mkl_is_fast", lambda: False)
        assert not winograd.is_faster(layer(128, 128), x)
    assert not winograd.is_faster(layer(128, 128), x)


@pytest.mark.parametrize(("clips", "frames", "positions"), [(1, 8, 30), (2, 14, 9), (1, 25, 5), (3, 7, 1), (1, 1, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_along_time_equals_the_convolution(clips: int, frames: int, positions: int, bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv3d(12, 20, (3, 1, 1), padding=(1, 0, 0), bias=bias)
    whole = torch.randn(clips, frames, 2 * positions, 12).permute(0, 3, 1, 2)
    with torch.no_grad():
        call = winograd.convolve_over_time(conv)
        for strip in (whole, whole[..., :positions], whole[..., positions:]):
            result = call(strip)
            expected = conv.double()(strip.double()[..., None])[..., 0]
            conv.float()
            assert result.shape == expected.shape
            assert torch.allclose(result.double(), expected, atol=1e-5)


def test_a_temporal_block_uses_it_in_strips_with_the_same_result() -> None:
    torch.manual_seed(1)
    block = layers.TemporalResBlock(128, None, 1e-5)
    x = torch.randn(1, 8, 1024, 128).permute(0, 3, 1, 2)
    with torch.no_grad():
        assert len(layers.strips_of(x)) > 1
        assert winograd.is_faster_over_time(block.conv1, x)
        assert not winograd.is_faster_over_time(block.conv1, x[:, :, :4])
        result = block.add_to(x.clone(memory_format=torch.preserve_format), torch.tensor(0.3))
    expected = x + 0.3 * block(x)
    assert torch.allclose(result, expected, atol=1e-5)
