"""The loss of the pocket codec.

Letters: B clips, T frames, C channels, h w latent rows and columns.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from kinema.families.svd.pocket.parts import PocketAutoencoder
from kinema.system import Batch

KL_WEIGHT = 3e-4
SQUARED = 8.0
"""Weight of the squared error relative to the absolute one: about equal at a mean error of 1/16."""
FRAMES_PER_CLIP = 4
"""Frames of each clip that the codec is trained on; neighbouring frames add little."""


def codec_loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
    """Absolute and squared error of a few frames of each clip, plus a small KL term, [B]."""
    vae, video_BCTHW = cast(PocketAutoencoder, model.vae), batch.video
    count, frames = len(video_BCTHW), video_BCTHW.shape[2]
    index = batch.own(
        torch.stack([torch.randperm(frames, generator=generator)[:FRAMES_PER_CLIP] for _ in range(batch.count)])
    )
    images = torch.cat([video_BCTHW[b, :, index[b]].transpose(0, 1) for b in range(count)])
    mean, log_variance = vae.raw(images).float().chunk(2, dim=1)
    if vae.training:
        vae.update_statistics(mean, count / batch.count)
    noise = torch.randn(batch.count * index.shape[1], *mean.shape[1:], generator=generator)
    z = mean + torch.exp(log_variance / 2) * batch.own(noise).to(mean)
    error = vae.decoder(z).float() - images
    kl = (mean.square() + log_variance.exp() - 1 - log_variance) / 2
    reconstruction = error.abs().flatten(1).mean(1) + SQUARED * error.square().flatten(1).mean(1)
    return (reconstruction + KL_WEIGHT * kl.flatten(1).mean(1)).unflatten(0, (count, -1)).mean(1)
