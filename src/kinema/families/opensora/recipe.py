"""How Open-Sora 2.0 is trained (section 4): a shifted flow with logit-normal times, and frames that are given.

Only the transformer learns (and the words of a small model); the codec is frozen.

Letters: B clips, C channels, T h w latent frames, rows and columns.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from kinema.diffusion.schedules import NoiseLevel
from kinema.families.opensora import conditioning
from kinema.families.opensora.codec import codec_of
from kinema.families.opensora.config import Config
from kinema.families.opensora.layout import latent_grid
from kinema.families.opensora.model import OpenSora, run
from kinema.families.opensora.pocket import recipe as pocket
from kinema.families.opensora.process import VELOCITY, flow
from kinema.system import Batch, TrainingSettings
from kinema.vae.given_pixels import encode_given

CANVASES = {"nothing": 1.0, "first": 5.0, "ends": 1.0, "suffix": 1.0}
"""Weights of t2v, i2v head, loop and tail in the published image-to-video stage."""


def settings(config: Config) -> TrainingSettings:
    """The second stage's rate; a batch that fits a small machine."""
    if config.vae == "pocket":
        return pocket.CODEC if config.stage == "codec" else pocket.FLOW
    total = sum(CANVASES.values())
    mix = {kind: weight / total for kind, weight in CANVASES.items()}
    return TrainingSettings(steps=10_000, batch=4, learning_rate=5e-5, canvas_mix=mix)


def loss(model: nn.Module, config: Config, batch: Batch, generator: torch.Generator) -> Tensor:
    """The flow's mean-squared error of each clip, [B]. Frames that the batch gives are conditioned on and count too."""
    if config.vae == "pocket":
        codec_trains = config.stage == "codec"
        return (
            pocket.codec_loss(model, batch, generator)
            if codec_trains
            else pocket.flow_loss(model, config, batch, generator)
        )
    network, grid = cast(OpenSora, model), latent_grid(config)
    codec = codec_of(config, network)
    with torch.no_grad():
        x0 = codec.encode(batch.video)
        given, mask = encode_given(partial(codec.encode), grid, batch.video, batch.mask)
        mask = mask.to(x0)
        shown = torch.cat([mask, given.to(x0) * mask], dim=1)
    shifted = flow(config.tokens(*batch.video.shape[3:]), x0.shape[2])
    t = batch.own(torch.randn(batch.count, generator=generator)).sigmoid()
    level = NoiseLevel(*(x.to(x0) for x in (shifted.level(t).alpha, shifted.level(t).sigma)))
    eps = batch.own(torch.randn(batch.count, *x0.shape[1:], generator=generator)).to(x0)
    text = conditioning.training_text(network, config, batch)
    output = run(network.transformer, level.add_noise(x0, eps), level, *text, shown)
    return VELOCITY.loss(output.float(), x0, eps, level)
