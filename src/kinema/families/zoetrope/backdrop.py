"""What stands still, drawn once for all frames.

As in "Generating Videos with Scene Dynamics" (Vondrick et al. 2016), whose clip is ``m f + (1 - m) b`` with a still
``b``: what does not move is drawn from what all frames show of it, and cannot flicker. See docs/decisions/0002, point
9. Letters as in `model`.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.families.zoetrope.layers import PlaceBlock, over_space

PIXELS = "b t h w (c p q) -> b c t (h p) (w q)"
_LEFT = 0.02
"""The error, in pixel values of [-1, 1], that the network leaves in a clip with hardly any noise: see `kept`.

Measured on real clips it is nearer 0.06; at 0.1, with which the first weights were trained, samples kept grain that
flickered.
"""
_UNSEEN = 1e-3
"""Least weight of a frame in the backdrop: where no frame shows it, each counts alike."""


class Backdrop(nn.Module):
    """One picture for all frames, and the share of it at each pixel of each frame."""

    def __init__(self, channels: int, hidden: int, cond: int, cell: int) -> None:
        super().__init__()
        self.cell = cell
        self.share = nn.Linear(channels + 4, cell**2)
        self.place = PlaceBlock(channels, hidden, cond)
        self.out = nn.Conv2d(channels, 3 * cell**2, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.share.weight)
        nn.init.zeros_(self.share.bias)
        with torch.no_grad():  # the share starts as where the sketch has no object: from nothing it took long to move
            with torch.device("cpu"):  # also where the network is made without numbers
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
        """The picture over ``span`` frames each, B×3×T×H×W, and logits of its share, B×1×T×H×W."""
        share = self.share(torch.cat([fine_BTHWC, sketch_BTHW4], dim=-1))
        seen_BTHW1 = share.sigmoid().mean(-1, keepdim=True) + _UNSEEN
        fine = _together(fine_BTHWC * seen_BTHW1, 1, span) / _together(seen_BTHW1, 1, span)
        fine = self.place(fine, cond_BM, 1)
        picture = over_space(self.out, F.layer_norm(fine, fine.shape[-1:]))
        picture_BCTHW = rearrange(picture, PIXELS, p=self.cell, q=self.cell)
        share_B1THW = rearrange(share, PIXELS, c=1, p=self.cell, q=self.cell)
        weight = share_B1THW.sigmoid() + _UNSEEN
        total = _together(weight, 2, span)
        z = _together(z_BCTHW * weight, 2, span) / total
        noise = _together(weight.square(), 2, span) / total.square()
        still_BCTHW = kept(picture_BCTHW, z, log_snr_B, noise)
        return still_BCTHW.repeat_interleave(span, dim=2), share_B1THW


def kept(drawn_BCTHW: Tensor, z_BCTHW: Tensor, log_snr_B: Tensor, noise: Tensor | float = 1.0) -> Tensor:
    """The drawing averaged with the input itself, z/alpha, each weighted by the inverse of its variance.

    ``noise`` is the variance left in ``z`` of that of its level, where ``z`` is a mean of frames.

    Where the noise is less than what the network leaves undrawn (``_LEFT``), the input is the better estimate: without
    this, the last steps of sampling redrew outlines rounder than they already were. ``z`` has variance 1 over a clip
    (its alpha and sigma have squares that sum to 1).
    """
    log_snr = log_snr_B[:, None, None, None, None]
    share = _LEFT**2 / (_LEFT**2 + torch.exp(-log_snr) * noise)
    kept_BCTHW = z_BCTHW * torch.rsqrt(torch.sigmoid(log_snr))
    return torch.lerp(drawn_BCTHW, kept_BCTHW.to(drawn_BCTHW), share.to(drawn_BCTHW))


def _together(x: Tensor, dim: int, span: int) -> Tensor:
    """The sum over each ``span`` frames, which are axis ``dim``."""
    return x.unflatten(dim, (-1, span)).sum(dim + 1)
