"""Losses of the pocket model: the image, and reading objects and positions off its features, from scene graphs.

Letters: B clips, T frames, C channels, H W latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from kinema.data.reading import OFFSET_CLASSES, READING_CLASSES, location_loss, pixel_loss, reading_loss
from kinema.diffusion import losses
from kinema.diffusion.schedules import DiscreteBetas, NoiseLevel
from kinema.families.animatediff.kind import Network
from kinema.families.animatediff.pocket.parts import Reader, reader_of
from kinema.system import Batch
from kinema.vae.kl2d import ImageCodec

IMAGE_LEVELS = losses.draw_levels("edm-lognormal", p_mean=1.2, p_std=1.4, stratified=True)
CLIP_LEVELS = losses.draw_levels("edm-lognormal", p_mean=2.0, p_std=1.3, stratified=True)
"""Distributions of ln(sigma / alpha); eight frames together are as informative as one at a level lower by ln(8) / 2."""
READER_WEIGHT = 0.01
"""Weight of the reader's loss relative to the image loss."""


def sample_levels(
    schedule: DiscreteBetas, count: int, generator: Generator, *, on_clips: bool
) -> tuple[NoiseLevel, Tensor]:
    """Sample noise levels at which the prompt matters; returns them and their timesteps, [B]."""
    level = (CLIP_LEVELS if on_clips else IMAGE_LEVELS)(schedule, count, generator)
    return level, schedule.timestep(level.log_snr)


def loss(network: Network, batch: Batch, level: NoiseLevel, predict: Callable[[], Tensor]) -> Tensor:
    """Image loss and reader loss of one forward pass, [B]."""
    reader = reader_of(network)
    with reader.watching(network.unet) as features:
        output = predict()
    return image_loss(network, batch, output, level) + READER_WEIGHT * reader_loss(reader, batch, features)


def image_loss(network: Network, batch: Batch, output_BCTHW: Tensor, level: NoiseLevel) -> Tensor:
    """Weighted pixel loss, [B]."""
    image = ImageCodec(network.vae, network.unet.config.latent_scale).decode(output_BCTHW).float()
    return pixel_loss(image, batch.video, batch.scenes, level, torch.ones_like(image[:, :1]))


def reader_loss(reader: Reader, batch: Batch, features: list[Tensor]) -> Tensor:
    """Reading loss of both feature maps, [B]; every parameter gets a gradient, also without scene graphs."""
    count, frames = len(batch.captions), batch.video.shape[2]
    predictions = [x.unflatten(0, (count, frames)).flatten(1, 2).float() for x in reader(features)]
    total = predictions[0].new_zeros(count)
    if not any(batch.scenes):
        return total + 0 * sum(x.sum() for x in predictions)
    grid = (frames, *features[0].shape[-2:])
    for x in predictions:
        what, where = x.split((sum(READING_CLASSES), sum(OFFSET_CLASSES)), dim=-1)
        total = total + reading_loss(what, batch.scenes, grid) + location_loss(where, batch.scenes, grid)
    return total
