"""The codec of Open-Sora 1.3: 4×8×8 pixels to 16 channels, in one network.

A clip is coded in windows of 17 frames, each to 5 latent frames on its own. Neighbours share a frame, which is coded
twice and averaged when decoded: 16k + 1 frames become 5k latent frames, and a lone image one. Parameter names are those
of the published file.

Letters: B batch, C channels, T frames, H W rows and columns, c t h w those of latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.cancel import checkpoint
from kinema.families.opensora.vae1x.vae13_layers import EPS, Downsample, ImageResampling, Level, MiddleBlock, Upsample
from kinema.families.opensora.vae1x.zero_causal import GROUPS, CausalConv3d, after_silu, posterior
from kinema.grid import FrameGrid
from kinema.vae.by_frames import activated, by_frames

# Measured over latents of clips by the authors; the published figures in full.
MEAN = (
    -0.19016949832439423,
    -0.04480062797665596,
    0.020789705216884613,
    0.01865335740149021,
    -0.011585569009184837,
    0.0010865575168281794,
    0.08378933370113373,
    0.08902134001255035,
    0.00940945465117693,
    0.08086848258972168,
    -0.07251627743244171,
    0.05052144080400467,
    -0.0209724809974432,
    -0.1223079189658165,
    -0.003862356534227729,
    -0.023072388023138046,
)
STD = (
    0.9490776062011719,
    0.9594117999076843,
    0.9444302916526794,
    0.9103284478187561,
    0.959351658821106,
    0.8430351614952087,
    0.8888124823570251,
    0.9291136860847473,
    0.972594141960144,
    0.8917953968048096,
    0.8630853891372681,
    0.8279891610145569,
    0.9114300012588501,
    0.7922844886779785,
    0.8991407155990601,
    0.9473513960838318,
)


@dataclass(frozen=True)
class Sizes13:
    """Sizes; the defaults are the published ones (259,163,811 in 256 tensors)."""

    latent: int = 16
    widths: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    """Blocks of a level; one more in the decoder."""
    temporal: tuple[int, ...] = field(default=(1, 2), metadata={"least": 0})
    """The levels after which (before which, in the decoder) the number of frames changes too."""
    window: int = 17
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    """Latents are ``(z - mean) / std``, channel by channel."""

    @property
    def stride(self) -> tuple[int, int, int]:
        """Pixels of one latent cell along (time, height, width)."""
        side = 2 ** (len(self.widths) - 1)
        return (2 ** len(self.temporal), side, side)

    @property
    def time(self) -> FrameGrid:
        return FrameGrid(self.stride[0], causal=True, run=self.window, shared=1)


class Encoder(nn.Module):
    """``forward(pixels B×3×T×H×W) -> mean and log-variance of the latents, B×2c×t×h×w``."""

    def __init__(self, sizes: Sizes13) -> None:
        super().__init__()
        widths, last = sizes.widths, len(sizes.widths) - 1

        def down(i: int, width: int) -> nn.Module | None:
            if i == last:
                return None
            return Downsample(width) if i in sizes.temporal else ImageResampling(width, down=True)

        self.conv_in = CausalConv3d(3, widths[0])
        self.down = nn.ModuleList(
            Level(widths[max(i - 1, 0)], width, sizes.layers, down=down(i, width)) for i, width in enumerate(widths)
        )
        self.mid = MiddleBlock(widths[-1])
        self.norm_out = nn.GroupNorm(GROUPS, widths[-1], EPS)
        self.conv_out = CausalConv3d(widths[-1], 2 * sizes.latent)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        x = self.conv_in(x_BCTHW)
        for level in self.down:
            x = level(x)
        return after_silu(self.conv_out, self.norm_out, self.mid(x))


class Decoder(nn.Module):
    """``forward(latents B×c×t×h×w) -> pixels B×3×T×H×W``, for one window."""

    def __init__(self, sizes: Sizes13) -> None:
        super().__init__()
        widths = sizes.widths

        def up(i: int, width: int) -> nn.Module | None:
            if i == 0:
                return None
            return Upsample(width) if i - 1 in sizes.temporal else ImageResampling(width, down=False)

        self.conv_in = CausalConv3d(sizes.latent, widths[-1])
        self.mid = MiddleBlock(widths[-1])
        self.up = nn.ModuleList(
            Level((*widths, widths[-1])[i + 1], width, sizes.layers + 1, up=up(i, width))
            for i, width in enumerate(widths)
        )
        self.norm_out = nn.GroupNorm(GROUPS, widths[0], EPS)
        self.conv_out = nn.Conv3d(widths[0], 3, 3)
        self.spare = sizes.stride[0] - 1
        """Frames before the first, which upsampling adds."""

    def forward(self, z_BCTHW: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z_BCTHW))
        for level in reversed(list(self.up)):
            x = level(x)
        return self._out(x)[:, :, self.spare :]

    def _out(self, x_BCTHW: Tensor) -> Tensor:
        layer = _Unnested(self.conv_out)
        if torch.is_grad_enabled():
            return self.conv_out(F.pad(F.silu(self.norm_out(x_BCTHW)), layer.pad))
        return by_frames(layer, activated(self.norm_out, x_BCTHW))


@dataclass(eq=False)
class _Unnested:
    """A causal convolution whose parameters the file names without another ``conv``."""

    conv: nn.Conv3d
    pad: tuple[int, ...] = (1, 1, 1, 1, 2, 0)
    zeros: bool = True


class VideoVAE13(nn.Module):
    """Encoder and decoder."""

    def __init__(self, sizes: Sizes13 = Sizes13()) -> None:  # noqa: B008 (frozen)
        super().__init__()
        self.encoder = Encoder(sizes)
        self.decoder = Decoder(sizes)
        self.sizes, self.stride, self.time = sizes, sizes.stride, sizes.time

    def encode(self, video_BCTHW: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents B×c×t×h×w of about unit variance.

        They are the posterior's mode; with ``generator`` a sample, as in the published sampling. A last window that is
        not full is encoded, but not decoded whole: see `decode`.
        """
        windows = []
        for run in self.time.runs(video_BCTHW.shape[2]):
            checkpoint()
            windows.append(self.encoder(video_BCTHW[:, :, run.start : run.stop]))
        z = posterior(torch.cat(windows, dim=2), generator)
        return ((z - _channels(self.sizes.mean, z)) / _channels(self.sizes.std, z)).to(z.dtype)

    def decode(self, z_BCTHW: Tensor) -> Tensor:
        """Pixels: 4n - 3 frames of the n latent frames of a window, whose first is averaged with the last before it."""
        z = (z_BCTHW * _channels(self.sizes.std, z_BCTHW) + _channels(self.sizes.mean, z_BCTHW)).to(z_BCTHW.dtype)
        parts: list[Tensor] = []
        for window in z.split(self.time.latent(self.sizes.window), dim=2):
            checkpoint()
            part = self.decoder(window)
            if parts:
                last, first = parts[-1][:, :, -1:], part[:, :, :1]
                parts[-1:] = [parts[-1][:, :, :-1], 0.5 * (last + first)]
                part = part[:, :, 1:]
            parts.append(part)
        return torch.cat(parts, dim=2)


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device).reshape(1, -1, 1, 1, 1)
