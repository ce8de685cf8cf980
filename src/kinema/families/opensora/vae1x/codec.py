"""Pixels to latents and back with the codecs of Open-Sora 1.x: 1.0 and 1.1 by images, 1.2 and 1.3 by runs of frames.

Letters: B clips, T H W pixel frames, rows and columns, C t h w channels, frames, rows and columns of latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kinema.cancel import checkpoint
from kinema.families.opensora.vae1x.vae12 import IMAGE_SCALE, VideoVAE12
from kinema.families.opensora.vae1x.vae13 import VideoVAE13
from kinema.grid import FrameGrid, LatentGrid
from kinema.vae.kl2d import Autoencoder, ImageCodec
from kinema.vae.latent_rgb import LatentRGB
from kinema.vae.tiling import decode_tiled

TILES = (64, 32, 16)
"""Sides of decoded tiles in latent cells."""


@dataclass(frozen=True, eq=False)
class RunCodec:
    """The codec of 1.2 or of 1.3; each clip of a batch on its own."""

    vae: VideoVAE12 | VideoVAE13

    @property
    def grid(self) -> LatentGrid:
        """17 frames become 5 latent frames in both. 1.2: any number of frames; 1.3: ``16k + 1``, or one."""
        return LatentGrid(self.vae.time, self.vae.stride[1:], self.vae.sizes.latent)

    def encode(self, video_BCTHW: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The posterior's mode, so that equal clips have equal latents; with ``generator`` a sample, as published."""
        clips = []
        for clip in video_BCTHW.split(1):
            checkpoint()
            clips.append(self.vae.encode(clip, generator))
        return torch.cat(clips)

    def decode(
        self,
        z_BCTHW: Tensor,
        chunk: int | None = None,  # noqa: ARG002 (the codec's own runs)
        *,
        frames: int | None = None,
        tile: int | None = None,
    ) -> Tensor:
        """Decode run by run; with ``tile``, in blended square tiles of that many latent cells per side.

        ``frames``: how many pixel frames the latents stand for (`VideoVAE12.decode`); the latents of 1.3 tell.
        """
        clips = []
        for z in z_BCTHW.split(1):
            checkpoint()
            clips.append(self._decoded(z, frames, tile))
        return torch.cat(clips)

    def leaner(self, frames: int, height: int, width: int) -> Sequence[Mapping[str, int]]:  # noqa: ARG002
        """Return options that decode in less memory, by decreasing tile size."""
        return [{"tile": tile} for tile in TILES if tile < max(height, width)]

    def rgb(self, channels: int) -> LatentRGB | None:  # noqa: ARG002 (none is published)
        return None

    def _decoded(self, z_BCTHW: Tensor, frames: int | None, tile: int | None) -> Tensor:
        """Tiles of 1.2 are of images alone: its temporal codec needs little memory."""
        vae, side = self.vae, self.vae.stride[1]
        if isinstance(vae, VideoVAE13):
            return vae.decode(z_BCTHW) if tile is None else decode_tiled(vae.decode, z_BCTHW, tile, side)
        images = vae.image_latents(z_BCTHW, frames)
        decode = vae.spatial_vae.decode
        return decode(images) if tile is None else decode_tiled(decode, images, tile, side)


def image_codec(vae: Autoencoder) -> ImageCodec:
    """The codec of 1.0 and 1.1: Stable Diffusion's, frame by frame."""
    return ImageCodec(vae, IMAGE_SCALE)


IMAGE_GRID = LatentGrid(FrameGrid(), (8, 8), channels=4)
"""Its geometry: as many latent frames as frames."""
