"""Training of the temporal layers; the image model stays frozen (§3.1).

The authors publish neither optimiser nor steps. Letters: B clips, C channels, T frames, H W rows and columns.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from kinema import processor
from kinema.data.playroom import Playroom
from kinema.data.reading import pixel_loss
from kinema.diffusion import losses
from kinema.diffusion.parameterise import EPS, X0, Parameterisation
from kinema.diffusion.schedules import DiscreteBetas
from kinema.families.lumiere import conditioning
from kinema.families.lumiere.config import Config
from kinema.families.lumiere.layout import lattice
from kinema.families.lumiere.model import Lumiere
from kinema.nn.ldm_unet import channels_last
from kinema.schema import BadRequest
from kinema.system import Batch, TrainingSettings
from kinema.vae.given_pixels import encode_given
from kinema.vae.kl2d import ImageCodec

MIX = {"nothing": 0.6, "first": 0.2, "prefix": 0.05, "ends": 0.05, "region": 0.1}
"""Kinds of given pixels; the paper fine-tunes on each kind separately."""
SETTINGS = TrainingSettings(
    steps=100_000, batch=8, learning_rate=1e-4, weight_decay=0.01, ema=0.9999, text_drop=0.1, canvas_mix=MIX
)
POCKET = TrainingSettings(
    steps=3600, batch=4, learning_rate=2e-3, optimiser="muon", weight_decay=0.01, warmup=50, cooldown=0.4, ema=0.995,
    text_drop=0.1, canvas_mix=MIX, playroom=Playroom("scenic"),
)  # fmt: skip
POCKET_SR = replace(POCKET, steps=600, learning_rate=1e-3, canvas_mix={"nothing": 1.0})
POCKET_KEYFRAMES = replace(POCKET, steps=1800)
"""Half of the steps for each network of the cascade, so that both together have as many as the one-pass model."""
POCKET_BETWEEN = replace(POCKET_KEYFRAMES, canvas_mix={"ends": 1.0}, playroom=Playroom("scenic", scene=33))
"""Windows of the 33 frames of which nine are keyframes."""
TINY = replace(POCKET, steps=200, warmup=10, optimiser="adamw", learning_rate=1e-3, ema=0.99)
IMAGE_LEVEL = 0.567
"""Mean of ln(sigma / alpha) for single frames; T of them are as informative as one at a level lower by ln(T) / 2."""
SR_LEVELS = losses.draw_levels("edm-lognormal", p_mean=0.0, p_std=1.4, stratified=True)
SR_NOISE = 0.08
"""Largest standard deviation of the noise added to the small clip in training, as sampled clips are not perfect."""


def settings_of(config: Config) -> TrainingSettings:
    """Raises BadRequest for a preset whose image part is random, but for the tiny ones of tests."""
    if not config.inflated and config.channels[0] >= 64:
        raise BadRequest("this preset has no image model to inflate, only random weights; give --add image=FILE")
    if not config.patch or config.channels[0] > 64:
        return SETTINGS
    if config.channels[0] < 64:
        return TINY if config.enlarges == 1 else replace(TINY, canvas_mix=POCKET_SR.canvas_mix)
    if config.enlarges > 1:
        return POCKET_SR
    if config.resamples:
        return POCKET
    return POCKET_KEYFRAMES if config.overlap is None else POCKET_BETWEEN


def clip_levels(config: Config) -> losses.DrawLevels:
    """How noise levels are drawn for clips of this length."""
    return losses.draw_levels(
        "edm-lognormal", p_mean=IMAGE_LEVEL + math.log(config.frames) / 2, p_std=1.3, stratified=True
    )


def schedule_of(config: Config) -> DiscreteBetas:
    """The image model's noise schedule."""
    return DiscreteBetas(*config.betas)


def parameterisation_of(config: Config) -> Parameterisation:
    """What the image model predicts."""
    return X0 if config.predicts == "x0" else EPS


def loss(model: nn.Module, config: Config, batch: Batch, generator: Generator) -> Tensor:
    """Loss of the prediction at a noise level sampled for each clip, over what is not given, [B]."""
    network = cast(Lumiere, model)
    channels_last(network.unet)
    codec = ImageCodec(network.vae, config.latent_scale)
    with torch.no_grad():
        x0 = codec.encode(batch.video)
    schedule = schedule_of(config)
    draw = losses.draw_levels("uniform")
    if config.predicts == "x0":
        draw = clip_levels(config) if config.enlarges == 1 else SR_LEVELS
    level = batch.own(draw(schedule, batch.count, generator))
    eps = batch.own(torch.randn(batch.count, *x0.shape[1:], generator=generator)).to(x0)
    step = processor.to_device(schedule.timestep(level.log_snr), x0.device)
    given, known = _given(network, config, batch)
    small = None if config.enlarges == 1 else codec.encode(_small(config, batch, generator))
    context = conditioning.captions(network, config, batch)
    out = network.unet(level.add_noise(x0, eps).to(x0), step, context, given, small)
    unused = 0 * sum(p.sum() for p in network.unet.conv_given.parameters()) if network.unet.conv_given else 0
    if config.predicts == "eps":
        return EPS.loss(out.float(), x0, eps, level, mask=1 - known) + unused
    return pixel_loss(codec.decode(out).float(), batch.video, batch.scenes, level, 1 - batch.mask) + unused


def _given(network: Lumiere, config: Config, batch: Batch) -> tuple[Tensor | None, Tensor]:
    """The input of given pixels, None where nothing is, and the mask of what is known, of latents."""
    known = batch.mask[:, :, :, :: config.stride, :: config.stride]
    if network.unet.conv_given is None or not bool(batch.mask.any()):
        return None, 0 * known
    if config.patch:
        return conditioning.given_pixels(config, batch.video, batch.mask), known
    codec = ImageCodec(network.vae, config.latent_scale)
    with torch.no_grad():
        content, mask = encode_given(codec.encode, lattice(config).grid, batch.video, batch.mask)
    mask = mask.to(content)
    return torch.cat([content * mask, mask], dim=1), mask


def _small(config: Config, batch: Batch, generator: Generator) -> Tensor:
    """The small clip with some noise, enlarged, B×3×T×H×W."""
    factor = (1, config.enlarges, config.enlarges)
    small = F.avg_pool3d(batch.video, factor)
    amount = batch.own(torch.rand(batch.count, generator=generator)).to(small) * SR_NOISE
    noise = batch.own(torch.randn(batch.count, *small.shape[1:], generator=generator)).to(small)
    return conditioning.enlarged(small + amount[:, None, None, None, None] * noise, config.enlarges)
