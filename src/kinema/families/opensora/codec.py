"""Pixels to latents and back, with either codec of Open-Sora 2.0, whole or in tiles of space and time that fade.

Letters: B clips, T H W pixel frames, rows and columns, t h w those of latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from kinema.cancel import checkpoint
from kinema.families.opensora.config import Config
from kinema.families.opensora.model import OpenSora
from kinema.schema import BadRequest
from kinema.vae.latent_rgb import LatentRGB
from kinema.vae.tiling import COLUMNS, ROWS, decode_blended, starts

ENCODED_WHOLE = 2**22
"""Pixels of the longest clip that is encoded whole; a map of the first layers takes 2 GiB of it in float32."""
PUBLISHED_TILE = 256
"""Pixels along a side of the tiles that longer clips are encoded in; they share a quarter."""


class VideoCoder(Protocol):
    """A codec of clips; ``stride`` is the pixels of one latent cell along (time, height, width)."""

    stride: tuple[int, int, int]

    def encode(self, video_BCTHW: Tensor) -> Tensor: ...

    def decode(self, z_BCTHW: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class VideoCodec:
    """Latents are multiplied by ``scale``. ``causal``: a clip's first latent frame stands for its first frame alone."""

    vae: VideoCoder
    scale: float
    causal: bool

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        """Long clips in tiles of space, so that a layer's maps stay bounded."""
        checkpoint()
        long = video_BCTHW[0, 0].numel() > ENCODED_WHOLE
        encode = self._encoded_in_tiles if long else self.vae.encode
        return torch.cat([encode(clip) for clip in video_BCTHW.split(1)]) * self.scale

    def decode(
        self,
        z_BCTHW: Tensor,
        chunk: int | None = None,
        *,
        overlap: int | None = None,
        tile: int | None = None,
    ) -> Tensor:
        """``chunk`` latent frames at a time, of which neighbours share ``overlap`` (a quarter), in squares of ``tile``
        latent cells, which share a quarter; all fade into each other.
        """
        clips = []
        for z in z_BCTHW.split(1):
            checkpoint()
            clips.append(self._decoded(z / self.scale, chunk, overlap, tile))
        return torch.cat(clips)

    def leaner(self, frames: int, height: int, width: int) -> Sequence[Mapping[str, int]]:
        """Tiles of space first, as published (256 pixels), then shorter runs of frames and, if causal, small tiles."""
        tile = PUBLISHED_TILE // self.vae.stride[1]
        tiles, parts = (
            ((tile, tile // 2), ((9, tile), (5, tile), (5, tile // 2))) if self.causal else ((tile,), ((8, tile),))
        )
        whole = [{"tile": each} for each in tiles if each < max(height, width)]
        return [*whole, *({"chunk": chunk, "tile": each} for chunk, each in parts if chunk < frames)]

    def rgb(self, channels: int) -> LatentRGB | None:  # noqa: ARG002 (none is published)
        return None

    def _encoded_in_tiles(self, video_BCTHW: Tensor) -> Tensor:
        tile, shared, (_, rows, columns) = PUBLISHED_TILE, PUBLISHED_TILE // 4, self.vae.stride

        def row(video: Tensor) -> Tensor:
            return decode_blended(self.vae.encode, video, COLUMNS, tile, shared, 1 / columns)

        return decode_blended(row, video_BCTHW, ROWS, tile, shared, 1 / rows)

    def _decoded(self, z_BCTHW: Tensor, chunk: int | None, overlap: int | None, tile: int | None) -> Tensor:
        frames = z_BCTHW.shape[2]
        if chunk is None or chunk >= frames:
            return self._in_space(z_BCTHW, tile)
        shared = max(chunk // 4, 1) if overlap is None else overlap
        if not 0 < shared < chunk:
            raise BadRequest(f"decode_overlap is {shared}; expected 1 to {chunk - 1}, fewer than decode_chunk")
        return self._in_time(z_BCTHW, chunk, shared, tile)

    def _in_space(self, z_BCTHW: Tensor, tile: int | None) -> Tensor:
        if tile is None:
            return self.vae.decode(z_BCTHW)
        _, rows, columns = self.vae.stride

        def row(z: Tensor) -> Tensor:
            return decode_blended(self.vae.decode, z, COLUMNS, tile, tile // 4, columns)

        return decode_blended(row, z_BCTHW, ROWS, tile, tile // 4, rows)

    def _in_time(self, z_BCTHW: Tensor, chunk: int, shared: int, tile: int | None) -> Tensor:
        """Runs of frames that fade where they overlap. A causal run's first latent frame stands for one frame alone: of
        a later run it is only what the others are decoded after, so it belongs to the overlap.
        """
        stride, total = self.vae.stride[0], z_BCTHW.shape[2]
        out: Tensor | None = None
        done = 0  # pixel frames that are settled
        for start in starts(total, chunk, shared):
            checkpoint()
            part = self._in_space(z_BCTHW[:, :, start : start + chunk], tile)
            begin = start * stride
            if self.causal and start:
                part, begin = part[:, :, 1:], (start * stride) + 1
            if out is None:
                length = (total - 1) * stride + 1 if self.causal else total * stride
                out = part.new_empty(*part.shape[:2], length, *part.shape[3:])
            both = done - begin
            if both > 0:
                weight = torch.arange(1, both + 1, device=part.device, dtype=part.dtype) / (both + 1)
                out[:, :, begin:done].lerp_(part[:, :, :both], weight[:, None, None])
            both = max(both, 0)
            done = begin + part.shape[2]
            out[:, :, begin + both : done] = part[:, :, both:]
        assert out is not None
        return out


def codec_of(config: Config, model: OpenSora) -> VideoCodec:
    """The codec of a model."""
    return VideoCodec(cast(VideoCoder, model.vae), config.scale, causal=config.causal)
