"""Training of the pocket model on playroom: first its codec, then its transformer and words on the codec's latents.

Letters: B clips, C channels, T H W pixel frames, rows and columns, c t h w those of latents.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from kinema.data.playroom import Playroom
from kinema.data.reading import OBJECT_MAX_SIGMA, object_mask
from kinema.diffusion import losses
from kinema.diffusion.schedules import RectifiedFlow
from kinema.families.opensora import conditioning
from kinema.families.opensora.config import Config
from kinema.families.opensora.layout import latent_grid
from kinema.families.opensora.model import run
from kinema.families.opensora.pocket.codec import PocketCodec
from kinema.families.opensora.pocket.model import PocketOpenSora
from kinema.families.opensora.pocket.reader import object_cells
from kinema.families.opensora.process import VELOCITY
from kinema.grid import LatentGrid
from kinema.schema import BadRequest
from kinema.system import Batch, TrainingSettings
from kinema.vae.given_pixels import encode_given, latent_mask

CODEC = TrainingSettings(
    steps=1600, batch=8, learning_rate=3e-3, optimiser="muon", warmup=50, cooldown=0.6, ema=0.99, text_drop=0.0,
    playroom=Playroom("mixed"),
)  # fmt: skip
FLOW = TrainingSettings(
    steps=3000, batch=16, learning_rate=3e-3, optimiser="muon", weight_decay=0.01, warmup=100, cooldown=0.5, ema=0.998,
    text_drop=0.1, playroom=Playroom("mixed"),
    canvas_mix={
        "nothing": 0.6, "first": 0.16, "ends": 0.05, "prefix": 0.06, "suffix": 0.05, "every": 0.03, "region": 0.05,
    },
)  # fmt: skip

KL_WEIGHT = 3e-4
SQUARED = 8.0
"""Weight of the squared error relative to the absolute one: about equal at a mean error of 1/16."""
CHANGES = 1.0
"""Weight of the absolute error of the change from frame to frame, which is what flickers."""
OBJECTS = 4.0
"""Additional weight of pixels around objects, which are few and what prompts are about."""

draw_levels = losses.draw_levels("logit-normal", mean=0.0, std=1.2, stratified=True)
OBJECT_CELLS = 2.0
"""Additional weight of latent cells with objects, below the noise at which their places are undecided."""
READER_WEIGHT = 0.02
"""Weight of the reader's loss relative to the velocity's."""


def codec_loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
    """Absolute and squared error of pixels and of their change in time, plus a small KL term, [B]."""
    codec, video = cast(PocketOpenSora, model).codec, batch.video
    mean, log_variance = (x.to(video.dtype) for x in codec.raw(video))
    if codec.training:
        codec.update_statistics(mean, len(video) / batch.count)
    noise = torch.randn(batch.count, *mean.shape[1:], generator=generator)
    z = mean + torch.exp(log_variance / 2) * batch.own(noise).to(mean)
    error = codec.decoder(z) - video
    weight = 1 + OBJECTS * object_mask(batch.scenes, video) if any(batch.scenes) else torch.ones_like(video[:, :1])
    weight = weight / weight.mean((1, 2, 3, 4), keepdim=True)
    kl = (mean.square() + log_variance.exp() - 1 - log_variance) / 2
    pixels = weight * (error.abs() + SQUARED * error.square())
    changes = weight[:, :, 1:] * error.diff(dim=2).abs()
    parts = (pixels, 1.0), (changes, CHANGES), (kl, KL_WEIGHT)
    counted = [scale * part.flatten(1).mean(1) for part, scale in parts if part.numel()]  # an image has no changes
    return sum(counted, video.new_zeros(len(video)))


def flow_loss(model: nn.Module, config: Config, batch: Batch, generator: torch.Generator) -> Tensor:
    """The velocity's squared error, with more weight on objects, plus the reader's loss, [B]."""
    network, video = cast(PocketOpenSora, model), batch.video
    codec, grid, reader = network.codec, latent_grid(config), network.reader
    assert config.shift is not None
    if not codec.trained:
        raise BadRequest(
            "the codec of this pocket model is untrained: train it first (stage codec), or start from opensora-pocket"
        )
    with torch.no_grad():
        x0 = codec.encode(video).to(video)
        shown = given(codec, grid, batch, x0)
    level = batch.own(draw_levels(RectifiedFlow(config.shift), batch.count, generator))
    eps = batch.own(torch.randn(batch.count, *x0.shape[1:], generator=generator)).to(x0)
    text = conditioning.training_text(network, config, batch)
    with reader.watching(network.transformer) as tokens:
        output = run(network.transformer, level.add_noise(x0, eps).to(x0), level, *text, shown)
    weight = torch.ones_like(x0[:, :1])
    if any(batch.scenes):
        decided = ((OBJECT_MAX_SIGMA - level.sigma) / 0.1).clamp(0, 1).to(x0)
        weight = 1 + OBJECT_CELLS * decided[:, None, None, None, None] * object_cells(batch.scenes, video, codec.stride)
    velocity_B = VELOCITY.loss(output.float(), x0, eps, level, mask=weight)
    cells = cast(tuple[int, int, int], tuple(x0.shape[2:]))
    return velocity_B + READER_WEIGHT * reader.loss(tokens[0], batch.scenes, cells)


def given(codec: PocketCodec, grid: LatentGrid, batch: Batch, x0_BCthw: Tensor) -> Tensor:
    """Mask and latents of what each clip of the batch gives, B×(c + 1)×t×h×w, zeros elsewhere."""
    rows = [_given(codec, grid, batch, x0_BCthw, i) for i in range(len(x0_BCthw))]
    return torch.cat(rows)


def _given(codec: PocketCodec, grid: LatentGrid, batch: Batch, x0_BCthw: Tensor, index: int) -> Tensor:
    one = slice(index, index + 1)
    video, mask, x0 = batch.video[one], batch.mask[one], x0_BCthw[one]
    frames = mask.amax((0, 1, 3, 4)) > 0
    count = int(frames.sum())
    cells = latent_mask(grid, mask).to(x0)
    from_start = bool(frames[:count].all()) and bool((mask.amin((0, 1, 3, 4)) > 0)[:count].all())
    if count == 0 or (from_start and grid.time.ceil(count) == count):
        return torch.cat([cells, x0 * cells], dim=1)  # the codec is causal: its own latents are those of the beginning
    content, cells = encode_given(codec.encode, grid, video * mask, mask)
    cells = cells.to(x0)
    return torch.cat([cells, content.to(x0) * cells], dim=1)
