"""Random numbers that do not depend on the batch: item i of a batch equals its single run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
