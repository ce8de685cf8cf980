"""Latents of training clips for Open-Sora 2.0, and of what a canvas gives: encoded now, or precomputed.

Precomputed are the unscaled latents of a clip, of its first frame alone and of its last frame alone; with them a canvas
may give nothing, the first frame, the last frame, or both, which are the published kinds. Others need the pixels.

Letters: B clips, C latent channels, T H W pixel frames, rows and columns, t h w those of latents.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from kinema.families.opensora.codec import VideoCodec, VideoCoder, codec_of
from kinema.families.opensora.config import Config
from kinema.families.opensora.layout import latent_grid
from kinema.families.opensora.model import OpenSora
from kinema.schema import BadRequest
from kinema.system import Batch
from kinema.vae.given_pixels import encode_given

LATENTS, FIRST, LAST = "latents", "first", "last"
"""Names of what is precomputed."""


@torch.no_grad()
def encode(network: OpenSora, video_B3THW: Tensor) -> dict[str, Tensor]:
    """What is precomputed of clips. Modes of the posterior, so that they can be."""
    codec = VideoCodec(
        cast(VideoCoder, network.vae), 1.0, causal=False
    )  # the scale and its causality belong to decoding and to configs
    parts = {LATENTS: video_B3THW, FIRST: video_B3THW[:, :, :1], LAST: video_B3THW[:, :, -1:]}
    return {name: codec.encode(video) for name, video in parts.items()}


@torch.no_grad()
def latents(network: OpenSora, config: Config, batch: Batch) -> tuple[Tensor, Tensor]:
    """``(latents B×C×t×h×w, given B×(C + 1)×t×h×w)``: the latter are the mask and the given latents, zero elsewhere.

    Each clip's given frames are encoded by themselves: no clip of a batch changes another's. A clip of one latent frame
    is given nothing, as published. Raises BadRequest for a canvas that precomputed latents do not serve.
    """
    if batch.encoded is not None:
        return _precomputed(config, batch)
    codec, grid = codec_of(config, network), latent_grid(config)
    x0 = codec.encode(batch.video).to(batch.video)  # under autocast too: the loss has their precision
    shown = []
    for video, mask in zip(batch.video.split(1), batch.mask.split(1), strict=True):
        visible = video * mask  # as in sampling: of a partly given frame, too, the rest is not seen
        content, known = encode_given(codec.encode, grid, visible, mask if x0.shape[2] > 1 else mask * 0)
        shown.append(torch.cat([known.to(x0), content.to(x0) * known.to(x0)], dim=1))
    return x0, torch.cat(shown)


def _precomputed(config: Config, batch: Batch) -> tuple[Tensor, Tensor]:
    assert batch.encoded is not None
    x0, first, last = (batch.encoded[name] * config.scale for name in (LATENTS, FIRST, LAST))
    mask, content = torch.zeros_like(x0[:, :1]), torch.zeros_like(x0)
    known_BT = _whole_frames(batch.mask)
    if bool(known_BT[:, 1:-1].any()):
        raise BadRequest("precomputed latents serve canvases of the first and last frame; train on the folder of clips")
    if x0.shape[2] > 1:
        for at, frame in ((0, first), (-1, last)):
            given_B1hw = known_BT[:, at, None, None, None].to(x0)
            mask[:, :, at] = given_B1hw
            content[:, :, at] = frame[:, :, 0] * given_B1hw
    return x0, torch.cat([mask, content], dim=1)


def _whole_frames(mask_B1THW: Tensor) -> Tensor:
    """Which frames are given, [B, T]. Raises BadRequest for parts of frames."""
    least, most = mask_B1THW.amin((1, 3, 4)), mask_B1THW.amax((1, 3, 4))
    if not torch.equal(least, most):
        raise BadRequest("precomputed latents serve whole frames, not regions; train on the folder of clips")
    return most > 0
