"""The geometry of a model's latents: which pixels a cell stands for, and which sizes can be generated."""

from __future__ import annotations

from functools import partial

from kinema.families.opensora import sizes
from kinema.families.opensora.config import Config
from kinema.grid import FrameGrid, LatentGrid, Lattice, Resolutions


def latent_grid(config: Config) -> LatentGrid:
    """HunyuanVideo's codec: 4k + 1 frames become k + 1 latent frames. Video DC-AE: 4k become k, and an image one."""
    time, rows, columns = config.stride
    causal = config.causal
    frames = FrameGrid(time, causal=causal, image=not causal)
    return LatentGrid(frames, (rows, columns), config.transformer.channels)


def lattice(config: Config) -> Lattice:
    return Lattice(
        latent_grid(config),
        config.multiple,
        min_side=config.multiple,
        max_frames=config.frames,
        resolutions=Resolutions(partial(sizes.trained, multiple=config.multiple), "2.0"),
    )
