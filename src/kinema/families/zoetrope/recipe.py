"""How zoetrope is trained: rectified flow in pixels, x0 prediction, velocity loss, mixed canvases."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from kinema.conditioning.pocket import PocketTokenizer
from kinema.diffusion import losses
from kinema.diffusion.parameterise import X0, over
from kinema.diffusion.schedules import Level, RectifiedFlow
from kinema.families.zoetrope.config import Config
from kinema.system import Batch, Recipe

RECIPE = Recipe(
    steps=2300,
    batch=16,
    learning_rate=3e-3,
    optimiser="muon",
    weight_decay=0.01,
    warmup=100,
    cooldown=0.3,
    ema=0.999,
    text_drop=0.1,
    canvas_mix={
        "nothing": 0.74, "first": 0.12, "ends": 0.03, "prefix": 0.04, "suffix": 0.01, "every": 0.03, "region": 0.03,
    },
    grammar="mixed",
)  # fmt: skip
TINY = replace(RECIPE, steps=200, batch=4, warmup=10)

draw_levels = losses.draw_levels("logit-normal", mean=0.3, std=1.2, stratified=True)
"""Logit-normal times, then shifted toward noise by the config: colour, shape and direction are decided there."""
LEAST_SIGMA = 0.3
"""Bounds the velocity weighting 1/sigma² near clean frames, where there is little left to learn."""


def loss(model: nn.Module, config: Config, batch: Batch, generator: torch.Generator) -> Tensor:
    """Velocity error of the x0 prediction, ``‖x0 - x̂0‖²/sigma²``, over the pixels not given; ``[B]``.

    The flow's velocity is (z - x0)/sigma, so its error is the x0 error over sigma (arXiv 2511.13720, eq. 7).
    """
    x0 = batch.video
    level = draw_levels(RectifiedFlow(config.shift), len(x0), generator)
    eps = torch.randn(x0.shape, generator=generator).to(x0)
    z = level.add_noise(x0, eps).to(x0)
    _, _, c_in = X0.scalings(level)
    ids = PocketTokenizer(config.words).encode(batch.captions, config.text_length).to(x0.device)
    output = model(over(c_in, z) * z, level.log_snr.to(x0), ids, x0, batch.mask)
    return X0.loss(output.float(), x0, eps, level, weighting=velocity, mask=1 - batch.mask)


def velocity(level: Level) -> Tensor:
    return level.sigma.clamp(min=LEAST_SIGMA).pow(-2)
