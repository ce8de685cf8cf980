"""Zero-padded causal layers, which the codecs of Open-Sora 1.2 and 1.3 share.

Without gradients, convolutions run over a few frames at a time (`kinema.vae.by_frames`), to the same numbers but for
rounding.

Letters: B batch, C channels, T frames, H W rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.vae.by_frames import activated, by_frames, mixed, unchanged

GROUPS = 32

Stride = tuple[int, int, int]
"""(time, height, width)."""


class CausalConv3d(nn.Module):
    """A convolution over a clip with zeros around, in time only ``before`` the first frame (default: kernel - 1)."""

    zeros = True

    def __init__(  # noqa: PLR0917
        self,
        channels: int,
        out: int,
        kernel: int = 3,
        stride: Stride = (1, 1, 1),
        before: int | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        side = kernel // 2
        self.pad: tuple[int, ...] = (side, side, side, side, kernel - 1 if before is None else before, 0)
        self.conv = nn.Conv3d(channels, out, kernel, stride, bias=bias)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self.conv(F.pad(x_BCTHW, self.pad))
        return by_frames(self, unchanged(x_BCTHW))


def after_silu(conv: CausalConv3d, norm: nn.GroupNorm, x_BCTHW: Tensor) -> Tensor:
    """Group norm over the clip, SiLU, convolution."""
    if torch.is_grad_enabled():
        return conv(F.silu(norm(x_BCTHW)))
    return by_frames(conv, activated(norm, x_BCTHW))


def residual(
    x_BCTHW: Tensor,
    first: tuple[nn.GroupNorm, CausalConv3d],
    second: tuple[nn.GroupNorm, CausalConv3d],
    shortcut: CausalConv3d | None,
) -> Tensor:
    """Norm, SiLU and convolution, twice, added to the input, which the result overwrites if no gradient is needed."""
    (norm1, conv1), (norm2, conv2) = first, second
    h = after_silu(conv1, norm1, x_BCTHW)
    if torch.is_grad_enabled():
        return after_silu(conv2, norm2, h) + (x_BCTHW if shortcut is None else shortcut(x_BCTHW))
    skip = x_BCTHW if shortcut is None else mixed(shortcut.conv, x_BCTHW)
    return by_frames(conv2, activated(norm2, h), onto=skip)


def posterior(moments_BCTHW: Tensor, generator: torch.Generator | None) -> Tensor:
    """Latents of their mean and log-variance (two halves of the channels): the mean, or a sample with ``generator``."""
    mean, log_variance = moments_BCTHW.chunk(2, dim=1)
    if generator is None:
        return mean
    noise = torch.randn(mean.shape, generator=generator, device=generator.device).to(mean)
    return mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise
