"""The static background, estimated once for all frames.

As in "Generating Videos with Scene Dynamics" (Vondrick et al. 2016), where a clip is ``m f + (1 - m) b`` with a static
``b``: static content is estimated from all frames together, so it cannot flicker. See docs/notes/0002, entry 9.
Letters as in `model`.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.families.zoetrope.layers import PlaceBlock, over_space
from kinema.nn.linear import Linear

PIXELS = "b t h w (c p q) -> b c t (h p) (w q)"
_RESIDUAL = 0.02
"""Error of the network's estimate at very low noise, in pixel values of [-1, 1]: see `blend_with_input`.

Measured on real clips it is nearer 0.06; with 0.1, used for the first weights, samples kept flickering grain.
"""
_MIN_WEIGHT = 1e-3
"""Minimum weight of a frame in the backdrop: where no frame shows the background, all frames have equal weight."""


class Backdrop(nn.Module):
    """One background image for all frames, and its share in each pixel of each frame."""

    def __init__(self, channels: int, hidden: int, cond: int, cell: int) -> None:
        super().__init__()
        self.cell = cell
        self.share = Linear(channels + 4, cell**2)
        self.place = PlaceBlock(channels, hidden, cond)
        self.out = nn.Conv2d(channels, 3 * cell**2, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.share.weight)
        nn.init.zeros_(self.share.bias)
        with torch.no_grad():  # the share starts as the complement of the sketch: from zero it was slow to learn
            with torch.device("cpu"):  # also when the network is built on the meta device
                rows, columns = (torch.arange(cell**2) // d % cell * 2 // cell for d in (cell, 1))
                places = torch.arange(cell**2), channels + 2 * rows + columns
            self.share.weight[places] = -1.0

    def forward(
        self,
        fine_BTHWC: Tensor,
        sketch_BTHW4: Tensor,
        z_BCTHW: Tensor,
        log_snr_B: Tensor,
        cond_BM: Tensor,
        span: int,
    ) -> tuple[Tensor, Tensor]:
        """Return the background of each group of ``span`` frames, B×3×T×H×W, and the logits of its share, B×1×T×H×W."""
        share = self.share(torch.cat([fine_BTHWC, sketch_BTHW4], dim=-1))
        weight_BTHW1 = share.sigmoid().mean(-1, keepdim=True) + _MIN_WEIGHT
        fine = _sum_groups(fine_BTHWC * weight_BTHW1, 1, span) / _sum_groups(weight_BTHW1, 1, span)
        fine = self.place(fine, cond_BM, 1)
        image = over_space(self.out, F.layer_norm(fine, fine.shape[-1:]))
        image_BCTHW = rearrange(image, PIXELS, p=self.cell, q=self.cell)
        share_B1THW = rearrange(share, PIXELS, c=1, p=self.cell, q=self.cell)
        weight = share_B1THW.sigmoid() + _MIN_WEIGHT
        total = _sum_groups(weight, 2, span)
        z = _sum_groups(z_BCTHW * weight, 2, span) / total
        noise = _sum_groups(weight.square(), 2, span) / total.square()
        backdrop_BCTHW = blend_with_input(image_BCTHW, z, log_snr_B, noise)
        return backdrop_BCTHW.repeat_interleave(span, dim=2), share_B1THW


def blend_with_input(estimate_BCTHW: Tensor, z_BCTHW: Tensor, log_snr_B: Tensor, noise: Tensor | float = 1.0) -> Tensor:
    """Average the estimate with the input z/alpha, each weighted by its inverse variance.

    ``noise`` is the fraction of the noise variance left in ``z`` where ``z`` is a mean of frames.

    Where the noise is below the network's residual error (``_RESIDUAL``), the input is the better estimate: without
    the average, the last sampling steps made outlines rounder. ``z`` has unit variance (alpha² + sigma² = 1).
    """
    log_snr = log_snr_B[:, None, None, None, None]
    share = _RESIDUAL**2 / (_RESIDUAL**2 + torch.exp(-log_snr) * noise)
    input_BCTHW = z_BCTHW * torch.rsqrt(torch.sigmoid(log_snr))
    return torch.lerp(estimate_BCTHW, input_BCTHW.to(estimate_BCTHW), share.to(estimate_BCTHW))


def _sum_groups(x: Tensor, dim: int, span: int) -> Tensor:
    """Sum every ``span`` consecutive frames along axis ``dim``."""
    return x.unflatten(dim, (-1, span)).sum(dim + 1)
