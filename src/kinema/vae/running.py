"""Running mean and variance of a codec's latents in training, for codecs that normalise their latents."""

from __future__ import annotations

import torch
from torch import Tensor

MOMENTUM = 0.02
"""Weight of one optimiser step in the running statistics."""


@torch.no_grad()
def update_statistics(mean_C: Tensor, variance_C: Tensor, latents_BC: Tensor, share: float) -> None:
    """Move both statistics towards those of latents B×C×…, which are this share of an optimiser step's.

    The variance is about the running mean (West 1979), so that a step in small parts counts what is between them too.
    Latents that are not finite change nothing.
    """
    others = [axis for axis in range(latents_BC.ndim) if axis != 1]
    spread_C, centre_C = torch.var_mean(latents_BC.to(mean_C.dtype), dim=others, correction=0)
    if bool(torch.isfinite(spread_C).all()):
        weight, moved_C = share * MOMENTUM, centre_C - mean_C
        variance_C.add_(weight * moved_C.square()).lerp_(spread_C, weight)
        mean_C.add_(weight * moved_C)
