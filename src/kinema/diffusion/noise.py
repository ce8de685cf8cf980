"""Random numbers that do not depend on the batch (item i of a batch equals its single run), and their order over time.

FreeNoise (Qiu et al. 2023, arXiv 2310.15169): frames of a long clip share the noise of a short one, so that what
is far apart looks alike; in another order, so that it does not repeat.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kinema.schema import NoiseType


class Noise:
    """One CPU generator per batch item, seeded with ``seeds``; the same numbers on every device.

    Draws are float32 and then cast, so that precision does not change the noise either.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __len__(self) -> int:
        return len(self._generators)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal, [len(self), *shape], float32 on the CPU."""
        return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in self._generators])

    def like(self, z: Tensor) -> Tensor:
        """Standard normal of z's shape, dtype and device; item i comes from generator i.

        Raises ValueError where z has another number of items than there are seeds.
        """
        if len(z) != len(self):
            raise ValueError(f"noise has {len(self)} seeds, the batch {len(z)} items")
        return self.normal(z.shape[1:]).to(z)

    def permutation(self, count: int) -> Tensor:
        """An order of ``count`` things for each item, [len(self), count]."""
        return torch.stack([torch.randperm(count, generator=generator) for generator in self._generators])


def rescheduled(noise_BCTHW: Tensor, kind: NoiseType, length: int, stride: int, draws: Noise) -> Tensor:
    """Noise of a long clip made of that of its first ``length`` frames.

    ``shuffle-context``: every ``stride`` further frames are those ``length`` before them, in an order drawn for each
    clip; ``repeat-context``: the first ``length`` frames over and over.
    """
    total = noise_BCTHW.shape[2]
    if kind == "repeat-context":
        return noise_BCTHW[:, :, torch.arange(total) % length]
    made = noise_BCTHW.clone()
    for start in range(length, total, stride):
        order_BT = (start - length + draws.permutation(stride))[:, : total - start]
        for item, order_T in enumerate(order_BT):
            made[item, :, start : start + stride] = made[item, :, order_T]
    return made
