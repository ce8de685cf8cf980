"""A codec's residual block in strips of rows, against `ResBlock`."""

import pytest
import torch

from kinema.nn import winograd
from kinema.nn.ldm_unet import ResBlock, scale_and_shift, upsample_2x
from kinema.vae import strips


def block(channels, out):
    torch.manual_seed(3)
    result = ResBlock(channels, out, eps=1e-6).eval().requires_grad_(False)
    for p in result.parameters():
        p.add_(torch.randn_like(p) * 0.1)
    return result.to(memory_format=torch.channels_last)


def image(channels, height, width):
    return torch.randn(1, channels, height, width).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(32, 20), (30, 14), (3, 5)])
@pytest.mark.parametrize(("channels", "out"), [(32, 32), (64, 32)])
@torch.no_grad()
def test_strips_equal_the_whole_map(monkeypatch, size, channels, out):
    """Also with a shorter last strip and with a single strip."""
    monkeypatch.setattr(strips, "STRIP", 8 * size[1] * channels)
    layer, x = block(channels, out), image(channels, *size)
    result = torch.full((*size, out), torch.nan)
    strips.residual(layer, *size)(x[0].permute(1, 2, 0), result, torch.full((result.numel(),), torch.nan))
    torch.testing.assert_close(result, layer(x)[0].permute(1, 2, 0), atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_strips_use_winograd_when_the_whole_map_does(monkeypatch):
    monkeypatch.setattr(strips, "STRIP", 16 * 64 * 128)
    monkeypatch.setattr(winograd, "mkl_is_fast", lambda: True)
    layer, x = block(128, 128), image(128, 64, 64)
    expected, used = layer(x), []
    of_padded = winograd.convolve_padded
    monkeypatch.setattr(winograd, "convolve_padded", lambda conv: used.append(conv) or of_padded(conv))
    run = strips.residual(layer, 64, 64)
    inplace, buffer = x[0].permute(1, 2, 0), torch.empty(x.numel())
    run(inplace.clone(), inplace.clone(), buffer)
    run(inplace, inplace, buffer)
    assert used == [layer.conv1, layer.conv2]  # the weights are prepared once, not for each image
    torch.testing.assert_close(inplace, expected[0].permute(1, 2, 0), atol=5e-5, rtol=1e-5)


@torch.no_grad()
def test_norm_statistics_from_parts_equal_those_of_the_whole():
    norm = block(64, 64).norm1
    x = image(64, 12, 10) * 3 + 5
    scale, shift = scale_and_shift(norm, x.permute(0, 2, 3, 1).split([5, 1, 6], dim=1))
    torch.testing.assert_close(x * scale[..., None, None] + shift[..., None, None], norm(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("part", [1, 2**10, 2**30])
@torch.no_grad()
def test_upsampling_by_rows_equals_upsampling_the_whole_map(monkeypatch, part):
    monkeypatch.setattr("kinema.nn.ldm_unet.PART", part)
    conv, x = block(32, 32).conv1, torch.cat([image(32, 7, 6), image(32, 7, 6)])
    expected = conv(torch.nn.functional.interpolate(x, scale_factor=2))
    buffer = torch.full((expected.numel(),), torch.nan)
    result = upsample_2x(conv, x, buffer)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    assert result.data_ptr() == buffer.data_ptr()


def test_strips_are_used_only_for_cpu_inference():
    layer, x = block(32, 32), image(32, 8, 8)
    with torch.no_grad():
        assert strips.pays_off(layer, strips.LEAST, x)
        assert strips.pays_off(block(32, 64), strips.LEAST, x)  # with a shortcut
        assert not strips.pays_off(layer, strips.LEAST - 1, x)
        assert not strips.pays_off(layer, strips.LEAST, x.to("meta"))
        assert not strips.pays_off(layer, strips.LEAST, x.double())
        assert not strips.pays_off(block(32, 32).bfloat16(), strips.LEAST, x.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            assert not strips.pays_off(layer, strips.LEAST, x)
        layer.conv2.padding_mode = "circular"
        assert not strips.pays_off(layer, strips.LEAST, x)
        layer.conv2.padding_mode = "zeros"
        layer.conv1.register_forward_hook(lambda *_: None)
        assert not strips.pays_off(layer, strips.LEAST, x)
    assert not strips.pays_off(block(32, 32), strips.LEAST, x)
