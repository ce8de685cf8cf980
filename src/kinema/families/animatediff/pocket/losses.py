"""What the pocket learns: to draw the picture, and to read what stands where beside it, from the scene graphs.

Letters: B clips, T frames, C channels, H W latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from kinema.data.reading import AWAY, READ, about, location_loss, reading_loss
from kinema.diffusion import losses
from kinema.diffusion.parameterise import X0
from kinema.diffusion.schedules import DiscreteBetas, NoiseLevel
from kinema.families.animatediff.kind import Network
from kinema.families.animatediff.pocket.parts import Reader, reader_of
from kinema.system import Batch
from kinema.vae.kl2d import ImageCodec

PICTURE_LEVELS = losses.draw_levels("edm-lognormal", p_mean=1.2, p_std=1.4, stratified=True)
CLIP_LEVELS = losses.draw_levels("edm-lognormal", p_mean=2.0, p_std=1.3, stratified=True)
"""ln(sigma / alpha) of pixels. Eight frames show as much together as one does at a level lower by ln(8) / 2."""
LEAST_SIGMA = 0.3
"""Bounds the weight 1 / sigma² of the picture's error, which is that of a flow's velocity (as in zoetrope)."""
OBJECT, FOUND = 4.0, 0.92
"""How much more the pixels about an object count, below this noise level: textures make most of a picture's error, and
while it is open where the object is, such weights would teach to see it everywhere."""
READING = 0.01
"""Weight of naming what stands where, beside drawing it."""


def draw(schedule: DiscreteBetas, count: int, generator: Generator, *, moves: bool) -> tuple[NoiseLevel, Tensor]:
    """Levels where words are decided, and the steps they are told as, [B]."""
    level = (CLIP_LEVELS if moves else PICTURE_LEVELS)(schedule, count, generator)
    return level, schedule.timestep(level.log_snr)


def error(network: Network, batch: Batch, level: NoiseLevel, predict: Callable[[], Tensor]) -> Tensor:
    """What one forward pass draws and reads wrong, [B]."""
    reader = reader_of(network)
    with reader.watching(network.unet) as seen:
        output = predict()
    return drawn(network, batch, output, level) + READING * unread(reader, batch, seen)


def drawn(network: Network, batch: Batch, output_BCTHW: Tensor, level: NoiseLevel) -> Tensor:
    """Weighted error of the pixels, [B]."""
    picture = ImageCodec(network.vae, network.unet.config.latent_scale).decode(output_BCTHW).float()
    sigma = level.sigma / (level.alpha + level.sigma)
    counts = torch.ones_like(picture[:, :1])
    if any(batch.scenes):
        more = OBJECT * ((FOUND - sigma) / 0.1).clamp(0, 1).to(picture)[:, None, None, None, None]
        counts = counts + more * about(batch.scenes, picture)
    return X0.loss(
        picture, batch.video, picture, level, weighting=lambda _: sigma.clamp(min=LEAST_SIGMA).pow(-2), mask=counts
    )


def unread(reader: Reader, batch: Batch, seen: list[Tensor]) -> Tensor:
    """What is misread of both maps, summed, [B]; every parameter has a gradient, whatever the clips."""
    count, frames = len(batch.captions), batch.video.shape[2]
    read = [x.unflatten(0, (count, frames)).flatten(1, 2).float() for x in reader(seen)]
    told = read[0].new_zeros(count)
    if not any(batch.scenes):
        return told + 0 * sum(x.sum() for x in read)
    grid = (frames, *seen[0].shape[-2:])
    for x in read:
        what, where = x.split((sum(READ), sum(AWAY)), dim=-1)
        told = told + reading_loss(what, batch.scenes, grid) + location_loss(where, batch.scenes, grid)
    return told
