"""Shared layers of latent-diffusion U-Nets: shortcuts that give the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kinema.nn.ldm_unet import TransformerBlock, Upsample


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_enlarging_by_four_small_convolutions_is_the_convolution_of_the_enlarged_map(layout):
    torch.manual_seed(0)
    up = Upsample(6).double()
    x = torch.randn(2, 6, 5, 3, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_(True)
    expected = up.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
    made = up(x)
    assert made.shape == expected.shape
    assert (made - expected).abs().max() <= 1e-12
    grads = [torch.autograd.grad(y.square().sum(), [x, *up.parameters()]) for y in (made, expected)]
    assert all((a - b).abs().max() <= 1e-9 for a, b in zip(*grads, strict=True))


def test_a_size_that_is_not_twice_is_made_as_asked():
    up = Upsample(4)
    assert up(torch.randn(1, 4, 3, 3), size=(5, 6)).shape == (1, 4, 5, 6)


def test_frames_share_the_keys_and_values_of_their_clip():
    """Two clips of three frames, a context each: as if every frame had its clip's context."""
    torch.manual_seed(0)
    block = TransformerBlock(8, 2, 5).double().requires_grad_(False)
    x, context = torch.randn(6, 4, 8, dtype=torch.float64), torch.randn(2, 7, 5, dtype=torch.float64)
    made = block(x.clone(), context)
    apart = torch.cat([block(x[i : i + 1].clone(), context[i // 3 : i // 3 + 1]) for i in range(6)])
    assert (made - apart).abs().max() <= 1e-12
