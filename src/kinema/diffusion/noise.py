"""Gaussian noise that is independent of batching (item i of a batch equals its single run), and noise rescheduling.

FreeNoise (Qiu et al. 2023, arXiv 2310.15169) reuses the noise of a short clip for the frames of a long one, so that
distant frames look alike, and shuffles it, so that they do not repeat.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kinema.schema import NoiseType


class Noise:
    """One CPU generator per batch item, seeded with ``seeds``, so that noise is the same on every device.

    Samples are drawn in float32 and then cast, so that it is also the same in every precision.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __len__(self) -> int:
        return len(self._generators)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal noise, [len(self), *shape], float32 on the CPU."""
        return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in self._generators])

    def like(self, z: Tensor) -> Tensor:
        """Standard normal noise of z's shape, dtype and device; item i comes from generator i.

        Raises ValueError if the number of items differs from the number of seeds.
        """
        if len(z) != len(self):
            raise ValueError(f"noise has {len(self)} seeds, but the batch has {len(z)} items")
        return self.normal(z.shape[1:]).to(z)

    def permutation(self, count: int) -> Tensor:
        """A random permutation of 0…count-1 for each item, [len(self), count]."""
        return torch.stack([torch.randperm(count, generator=generator) for generator in self._generators])


def reschedule_noise(noise_BCTHW: Tensor, kind: NoiseType, length: int, stride: int, draws: Noise) -> Tensor:
    """Build a long clip's noise from that of its first ``length`` frames (FreeNoise's noise rescheduling).

    ``shuffle-context``: each further group of ``stride`` frames takes the noise of the group ``length`` frames
    earlier, shuffled per clip. ``repeat-context``: repeats the first ``length`` frames.
    """
    total = noise_BCTHW.shape[2]
    if kind == "repeat-context":
        return noise_BCTHW[:, :, torch.arange(total) % length]
    result = noise_BCTHW.clone()
    for start in range(length, total, stride):
        order_BT = (start - length + draws.permutation(stride))[:, : total - start]
        for item, order_T in enumerate(order_BT):
            result[item, :, start : start + stride] = result[item, :, order_T]
    return result
