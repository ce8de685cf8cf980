"""Codecs of Open-Sora 2.0 in tiles: bounded memory, and no change to codecs that look at one cell alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kinema.families.opensora import codec as module
from kinema.families.opensora.codec import VideoCodec
from kinema.memory.rehearsal import Rehearsal
from kinema.vae.causal3d import CausalAutoencoder


class Means:
    """Latents are the means of 8×8 pixels of a frame; decoding repeats them. Records the largest clip it was given."""

    stride = (1, 8, 8)

    def __init__(self) -> None:
        self.largest = 0

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        self.largest = max(self.largest, video_BCTHW[0, 0].numel())
        return F.avg_pool3d(video_BCTHW, self.stride)

    def decode(self, z_BCTHW: Tensor) -> Tensor:
        return z_BCTHW.repeat_interleave(8, 3).repeat_interleave(8, 4)


@pytest.mark.parametrize(("height", "width"), [(272, 528), (256, 304), (176, 640)])
def test_long_clips_are_encoded_in_tiles(height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENCODED_WHOLE", 10_000)
    means = Means()
    video = torch.randn(2, 3, 3, height, width)
    latents = VideoCodec(means, 0.5, causal=False).encode(video)
    assert torch.allclose(latents, 0.5 * F.avg_pool3d(video, means.stride), atol=1e-6)
    assert means.largest <= 3 * 256 * 256


@pytest.mark.parametrize(
    ("stride", "causal", "first", "last"),
    [
        ((4, 8, 8), True, {"tile": 32}, {"chunk": 5, "tile": 16}),
        ((4, 32, 32), False, {"tile": 8}, {"chunk": 8, "tile": 8}),
    ],
    ids=["hunyuan", "dc-ae"],
)
def test_parts_are_as_published_first(
    stride: tuple[int, int, int], causal: bool, first: dict[str, int], last: dict[str, int]
) -> None:
    """Tiles of 256 pixels; the DC-AE in 8 latent frames at a time."""
    means = Means()
    means.stride = stride
    parts = VideoCodec(means, 1.0, causal=causal).leaner(32, 72, 128)
    assert (parts[0], parts[-1]) == (first, last)


def test_short_clips_are_encoded_whole() -> None:
    means = Means()
    VideoCodec(means, 1.0, causal=False).encode(torch.randn(1, 3, 1, 576, 1024))
    assert means.largest == 576 * 1024


def test_tiles_of_33_frames_of_256_by_256_take_half_of_the_memory() -> None:
    with torch.device("meta"):
        vae = CausalAutoencoder().requires_grad_(False)
        z, video = torch.empty(1, 16, 9, 32, 32), torch.empty(1, 3, 129, 576, 1024)
    codec, rehearsal = VideoCodec(vae, 1.0, causal=True), Rehearsal({"": vae})
    with torch.no_grad():
        with rehearsal.phase("whole"):
            codec.decode(z)
        with rehearsal.phase("tiles"):
            codec.decode(z, tile=16)
        with rehearsal.phase("encoding"):
            codec.encode(video)
    whole, tiles, encoding = (rehearsal.phases[name].peak for name in ("whole", "tiles", "encoding"))
    assert tiles < 0.5 * whole
    assert encoding < 20e9  # float32; a single map of the first layers would hold 39 GB of it whole
