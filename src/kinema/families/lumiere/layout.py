"""The sizes of clips."""

from __future__ import annotations

from kinema.families.lumiere.config import Config
from kinema.grid import FrameGrid, LatentGrid, Lattice


def lattice(config: Config) -> Lattice:
    """Frames in multiples of what the levels halve; sides in multiples of the coarsest cells."""
    return Lattice(
        LatentGrid(FrameGrid(multiple=config.factor), (config.stride, config.stride), config.latent_channels),
        side_multiple=config.multiple,
        min_side=config.multiple,
        max_frames=config.longest,
    )
