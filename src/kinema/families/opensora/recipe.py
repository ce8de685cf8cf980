"""How Open-Sora 2.0 is trained (section 4): a shifted flow with logit-normal times, and frames that are given.

Only the transformer learns (and the words of a small model); the codec is frozen.

Letters: B clips, C channels, T h w latent frames, rows and columns.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from kinema.diffusion.schedules import NoiseLevel, RectifiedFlow
from kinema.families.opensora.config import Config
from kinema.families.opensora.files.opening import lacking
from kinema.families.opensora.model import OpenSora, run
from kinema.families.opensora.process import SIGMA_MIN, VELOCITY, flow
from kinema.families.opensora.training import given, text
from kinema.schema import BadRequest
from kinema.system import Batch, TrainingSettings

CANVASES = {
    "hunyuan": {"nothing": 1.0, "first": 5.0, "ends": 1.0, "last": 1.0},
    "dc-ae": {"nothing": 1.0, "first": 7.0},
}
"""Weights of t2v, i2v head, loop and tail in the published image-to-video stages, by codec."""


def settings(config: Config) -> TrainingSettings:
    """The second stage's rate, the DC-AE's own; a batch that fits a small machine. The loss drops text by itself.

    Raises BadRequest for a model without its codec.
    """
    if config.absent:
        raise BadRequest(lacking(config))
    weights = CANVASES[config.vae] if config.transformer.conditioned else {"nothing": 1.0}
    mix = {kind: weight / sum(weights.values()) for kind, weight in weights.items()}
    return TrainingSettings(
        steps=10_000,
        batch=4,
        learning_rate=3e-5 if config.vae == "dc-ae" else 5e-5,
        text_drop=0.0,
        canvas_mix=mix,
        lora={"steps": 5000, "learning_rate": 1e-4},
    )


def loss(model: nn.Module, config: Config, batch: Batch, generator: torch.Generator) -> Tensor:
    """The flow's mean-squared error of each clip, [B]. Frames that the batch gives are conditioned on and count too."""
    network = cast(OpenSora, model)
    x0, shown = batch.once("latents", lambda: given.latents(network, config, batch))
    shifted = flow(config.tokens(*batch.mask.shape[3:]), x0.shape[2])
    t = batch.own(torch.randn(batch.count, generator=generator)).sigmoid()
    drawn = shifted.level(t) if batch.time is None else RectifiedFlow(1.0).level(torch.full_like(t, batch.time))
    level = NoiseLevel(drawn.alpha.to(x0), drawn.sigma.to(x0))
    eps = batch.own(torch.randn(batch.count, *x0.shape[1:], generator=generator)).to(x0)
    z = replace(level, sigma=level.sigma + SIGMA_MIN * level.alpha).add_noise(x0, eps)
    states, pooled = text.of_second(network, config, batch, generator)
    output = run(network.transformer, z, level, states, pooled, shown if config.transformer.conditioned else None)
    return VELOCITY.loss(output.float(), x0, eps, level)
