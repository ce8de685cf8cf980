"""How motion modules are trained (Guo et al. 2023, §4.2): noise prediction, the image model frozen.

Released for v1 only: 16 frames of 256 pixels, every fourth, AdamW at 1e-4, the text dropped for a tenth.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Generator, Tensor, nn

from kinema.diffusion.parameterise import EPS
from kinema.diffusion.schedules import DiscreteBetas, Level
from kinema.families.animatediff import conditioning
from kinema.families.animatediff.conditioning import Condition
from kinema.families.animatediff.config import IMAGE_BETAS, Config
from kinema.families.animatediff.model import AnimateDiff
from kinema.system import Batch, Recipe
from kinema.vae.kl2d import ImageCodec

IMAGE_SCHEDULE = DiscreteBetas(*IMAGE_BETAS)

RECIPE = Recipe(
    steps=500_000,
    batch=4,
    learning_rate=1e-4,
    weight_decay=0.01,
    ema=0.9999,
    text_drop=0.1,
    frameskip=4,
)
TINY = replace(RECIPE, steps=200, batch=4, warmup=10, learning_rate=1e-3, ema=0.99, frameskip=1)


def schedule_of(config: Config) -> DiscreteBetas:
    return DiscreteBetas(*config.betas)


def run_unet(model: AnimateDiff, config: Config, z_BCTHW: Tensor, level: Level, condition: Condition) -> Tensor:
    """The predicted noise. A single frame is told its noise level as the image model was trained: on its own betas."""
    schedule = schedule_of(config) if condition.motion else IMAGE_SCHEDULE
    dtype, batch = model.unet.conv_in.weight.dtype, len(z_BCTHW)
    context = condition.context_KLC.to(dtype)
    if len(context) > 1:
        context = context.repeat(batch, 1, 1)
    step = schedule.timestep(level.log_snr).to(z_BCTHW.device)
    added, shown = condition.added_1V, condition.shown
    control = None
    if shown is not None and model.sparse is not None:
        control = model.sparse(shown.given_BCTHW, shown.mask_B1THW, step, context, shown.scale)
    return model.unet(
        z_BCTHW.to(dtype),
        step,
        context,
        None if added is None else added.expand(batch, -1),
        motion=condition.motion,
        effect_T1HW=condition.effect_T1HW,
        control=control,
    )


def loss(model: nn.Module, config: Config, batch: Batch, generator: Generator) -> Tensor:
    """Error of the predicted noise at a step drawn for each clip, [B]."""
    network = cast(AnimateDiff, model)
    schedule, count = schedule_of(config), len(batch.video)
    with torch.no_grad():
        x0 = ImageCodec(network.vae, config.latent_scale).encode(batch.video)
        context, added = _captions(network, config, batch)
    step = torch.randint(schedule.count, (count,), generator=generator)
    level = schedule.level(step.double() / (schedule.count - 1))
    eps = torch.randn(x0.shape, generator=generator).to(x0)
    z = level.add_noise(x0, eps)
    # One row of context a clip: its frames share it.
    output = network.unet(z, step.to(z.device), context, added, motion=config.motion != "none")
    return EPS.loss(output.float(), x0, eps, level)


def _captions(network: AnimateDiff, config: Config, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """The first row of each caption, B×L×C, and SDXL's added vector."""
    tokenizer = conditioning.tokenizer_of(config, None)
    told = [conditioning.encode_text(network, config, tokenizer, text) for text in batch.captions]
    context = torch.cat([states[:, : config.text[0].length] for states, _ in told])
    pooled = [vector for _, vector in told if vector is not None]
    if not pooled:
        return context, None
    sizes = conditioning.sizes(config, *batch.video.shape[-2:]).to(context)
    return context, torch.cat([torch.cat(pooled), sizes.expand(len(pooled), -1)], dim=1)
