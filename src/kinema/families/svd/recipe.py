"""SVD training (Blattmann et al. 2023, §4 and appendix D): EDM noise levels, v-prediction, conditioning dropout.

The x0 error is weighted by ``(1 + sigma²) / sigma²``, which makes the loss the mean squared error of the network's
output. Only the U-Net is trained; codec and image encoder are frozen.

Letters: B clips, T frames, C channels, h w latent rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from kinema import processor
from kinema.data.motion import bucket
from kinema.diffusion import losses
from kinema.diffusion.parameterise import V
from kinema.diffusion.schedules import EDMSigmas, NoiseLevel, broadcast
from kinema.families.svd.conditioning import Condition
from kinema.families.svd.config import Config
from kinema.families.svd.kinds import kind_of
from kinema.families.svd.model import SVD, VideoUNet
from kinema.families.svd.stages import FULL
from kinema.schema import BadRequest
from kinema.system import Batch, TrainingSettings

SCHEDULE = EDMSigmas(sigma_min=0.002, sigma_max=700.0, rho=7.0)
NOISE_MEAN, NOISE_STD = -3.0, 0.5
"""Mean and standard deviation of ln sigma of the noise added to the image."""


def schedule(config: Config) -> EDMSigmas:
    return replace(SCHEDULE, sigma_max=config.sigma_max)


# ---------------------------------------------------------------------------------- training stages


def staged(config: Config, name: str) -> Config:
    """Return the config for a training stage, at the stage's clip size for full-size networks.

    Raises BadRequest for an unknown stage.
    """
    stages = kind_of(config).stages
    if name not in stages:
        raise BadRequest(f"this svd model has no training stage {name!r}; expected one of {', '.join(stages)}")
    config = replace(config, stage=cast(Any, name))
    if config.channels[0] < FULL:
        return config
    frames, height, width = stages[name].size
    return replace(config, frames=max(frames, config.frames) if frames > 1 else 1, height=height, width=width)


def recipe(config: Config) -> TrainingSettings:
    """Return the training settings of the config's training stage."""
    kind = kind_of(config)
    stage = kind.stages[config.stage]
    settings = TrainingSettings(
        steps=stage.steps,
        batch=stage.batch,
        learning_rate=stage.learning_rate,
        optimiser=stage.optimiser,
        ema=stage.ema,
        text_drop=0.0,
        canvas_mix={"first": 1.0},
    )
    settings = replace(settings, **kind.settings(config))
    # Steps as for the paper's camera LoRAs (rank 16), whose batch and learning rate are unpublished.
    lora = {"steps": min(settings.steps, 5000), "batch": min(settings.batch, 8), "learning_rate": 1e-4}
    return replace(settings, lora=lora)


# -------------------------------------------------------------------------------------------- loss


def c_noise(level: NoiseLevel) -> Tensor:
    """The network's noise-level input: ln(sigma) / 4, [B]."""
    return -level.log_snr / 8


def run_unet(
    unet: VideoUNet, z_BCTHW: Tensor, level: NoiseLevel, condition: Condition, image_only_BT: Tensor | None = None
) -> Tensor:
    """Run the U-Net on scaled noisy latents, with the image latents concatenated to every frame."""
    image = condition.image_BCTHW.to(z_BCTHW).expand(-1, -1, z_BCTHW.shape[2], -1, -1)
    x = torch.cat([z_BCTHW, image], dim=1).to(unet.conv_in.weight.dtype)
    scalars = condition.scalars_BTV.to(z_BCTHW.device)
    return unet(
        x, processor.to_device(c_noise(level), z_BCTHW.device), condition.context_B1C.to(x), scalars, image_only_BT
    )


def loss(model: nn.Module, config: Config, batch: Batch, generator: torch.Generator) -> Tensor:
    """Error of the raw output over all frames, [B]; the first frame of each clip is its conditioning image."""
    if config.orbit:
        raise BadRequest("SV3D training needs renders with known cameras, which clips lack; train another preset")
    network, stage = cast(SVD, model), kind_of(config).stages[config.stage]
    if stage.loss is not None:
        return stage.loss(model, batch, generator)
    if stage.images:
        batch = _one_frame(batch, generator)
    encoded = batch.encoded or encode(network, batch.video)
    x0 = sample_posterior(encoded["moments"].to(network.unet.conv_in.weight), batch, generator) * config.latent_scale
    count = len(x0)
    condition = _condition(network, config, batch, encoded, generator)
    keep_B = batch.own(torch.rand(batch.count, generator=generator) >= stage.drop).to(x0)
    condition = replace(
        condition,
        context_B1C=condition.context_B1C * keep_B[:, None, None],
        image_BCTHW=condition.image_BCTHW * broadcast(keep_B * stage.given, x0),
    )
    draw_levels = losses.draw_levels("edm-lognormal", p_mean=stage.p_mean, p_std=stage.p_std, stratified=True)
    level = batch.own(draw_levels(SCHEDULE, batch.count, generator))
    eps = batch.own(torch.randn(batch.count, *x0.shape[1:], generator=generator)).to(x0)
    z = level.add_noise(x0, eps)
    image_only = torch.ones(count, x0.shape[2], dtype=torch.bool, device=x0.device) if stage.images else None
    # The input requires a gradient only to avoid a crash: with frozen first layers, torch 2.13 crashes in the backward
    # pass of a channels-last CPU group norm whose weight needs a gradient and whose input does not.
    scaled = (broadcast(V.scalings(level)[2], z) * z).requires_grad_(torch.is_grad_enabled())
    output = run_unet(network.unet, scaled, level, condition, image_only)
    return V.loss(output.float(), x0, eps, level)


def _one_frame(batch: Batch, generator: torch.Generator) -> Batch:
    """Take one random frame of each clip, or the first frame of pre-encoded clips."""
    if batch.encoded is not None:
        moments = batch.encoded["moments"][:, :, :1]
        return replace(batch, encoded={**batch.encoded, "moments": moments})
    chosen = batch.own(torch.randint(batch.video.shape[2], (batch.count,), generator=generator)).tolist()
    return replace(batch, video=torch.stack([clip[:, t : t + 1] for clip, t in zip(batch.video, chosen, strict=True)]))


def encode(model: SVD, video_BCTHW: Tensor) -> dict[str, Tensor]:
    """Encode clips with the frozen networks: everything training needs except the first frame's pixels.

    ``moments`` B×2c×T×h×w are mean and log-variance of the unscaled latents; ``context`` B×context is the embedding of
    the clean first frame. The latents of the noisy image are excluded, because its noise is new at every step.
    """
    count, frames = len(video_BCTHW), video_BCTHW.shape[2]
    with torch.no_grad():
        moments = model.vae.moments(video_BCTHW.transpose(1, 2).flatten(0, 1))
    context = model.image_encoder.embed(video_BCTHW[:, :, 0])
    return {"moments": moments.unflatten(0, (count, frames)).transpose(1, 2), "context": context}


def sample_posterior(moments_BCTHW: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
    """Sample latents from their posterior, as sgm's first stage does in training."""
    mean, log_variance = moments_BCTHW.chunk(2, dim=1)
    noise = batch.own(torch.randn(batch.count, *mean.shape[1:], generator=generator))
    return mean + torch.exp(log_variance / 2) * noise.to(mean)


def _condition(
    network: SVD, config: Config, batch: Batch, encoded: Mapping[str, Tensor], generator: torch.Generator
) -> Condition:
    """Build the condition: image embedding, latents of the noised image, and the clips' scalars."""
    image = batch.video[:, :, 0]
    amount = batch.own(torch.exp(NOISE_MEAN + NOISE_STD * torch.randn(batch.count, generator=generator)))
    noise = batch.own(torch.randn(batch.count, *image.shape[1:], generator=generator)).to(image)
    with torch.no_grad():
        latents = network.vae.encode(image + amount.to(image)[:, None, None, None] * noise)[:, :, None]
    values = {**scalar_values(config, batch), "augmentation": amount}
    scalars = torch.stack([values[name] for name, _ in config.scalars], dim=-1)[:, None]
    return Condition(encoded["context"].to(latents)[:, None], latents, scalars)


def scalar_values(config: Config, batch: Batch) -> dict[str, Tensor]:
    """Frame rate minus one and motion bucket of each clip, [B]; the config's defaults where unknown."""
    count = len(batch.captions)
    unknown = torch.full((count,), torch.nan)
    fps = unknown if batch.fps is None else batch.fps.float().cpu()
    motion = unknown if batch.motion is None else batch.motion.float().cpu()
    buckets = bucket(motion, config.motion_middle)
    return {
        "fps": (fps - 1).clamp_min(0).where(fps.isfinite(), torch.tensor(config.fps - 1)),
        "motion_bucket": buckets.where(buckets.isfinite(), torch.tensor(config.motion_bucket)),
    }
