"""How SVD is trained (Blattmann et al. 2023, §4 and appendix D): EDM levels, v-prediction, conditioning dropped.

In x0-space the weight is ``(1 + sigma²) / sigma²``, which is the plain mean-squared error of the network's own output.
Only the U-Net learns; codec and image encoder are frozen.

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
"""ln of the noise added to the picture."""


def schedule(config: Config) -> EDMSigmas:
    return replace(SCHEDULE, sigma_max=config.sigma_max)


# -------------------------------------------------------------------------------------- the stages


def staged(config: Config, name: str) -> Config:
    """The config in another stage, at the stage's size where the network is of full size. BadRequest for no stage."""
    known = kind_of(config).stages
    if name not in known:
        raise BadRequest(f"there is no training stage {name!r} of this svd model; expected one of {', '.join(known)}")
    config = replace(config, stage=cast(Any, name))
    if config.channels[0] < FULL:
        return config
    frames, height, width = known[name].size
    return replace(config, frames=max(frames, config.frames) if frames > 1 else 1, height=height, width=width)


def recipe(config: Config) -> TrainingSettings:
    """The figures of the config's stage."""
    kind = kind_of(config)
    stage = kind.stages[config.stage]
    told = TrainingSettings(
        steps=stage.steps,
        batch=stage.batch,
        learning_rate=stage.learning_rate,
        optimiser=stage.optimiser,
        ema=stage.ema,
        text_drop=0.0,
        canvas_mix={"first": 1.0},
    )
    told = replace(told, **kind.figures(config))
    # As the paper's camera LoRAs (rank 16); it tells neither batch nor rate, which are ours.
    return replace(told, lora={"steps": min(told.steps, 5000), "batch": min(told.batch, 8), "learning_rate": 1e-4})


# ---------------------------------------------------------------------------------------- the loss


def c_noise(level: NoiseLevel) -> Tensor:
    """What the network is told of the level: a quarter of ln sigma, [B]."""
    return -level.log_snr / 8


def run_unet(
    unet: VideoUNet, z_BCTHW: Tensor, level: NoiseLevel, condition: Condition, image_only_BT: Tensor | None = None
) -> Tensor:
    """The raw output for scaled noisy latents, beside which the picture's latents stand in every frame."""
    picture = condition.picture_BCTHW.to(z_BCTHW).expand(-1, -1, z_BCTHW.shape[2], -1, -1)
    x = torch.cat([z_BCTHW, picture], dim=1).to(unet.conv_in.weight.dtype)
    told = condition.scalars_BTV.to(z_BCTHW.device)
    return unet(x, processor.moved(c_noise(level), z_BCTHW.device), condition.context_B1C.to(x), told, image_only_BT)


def loss(model: nn.Module, config: Config, batch: Batch, generator: torch.Generator) -> Tensor:
    """Error of the raw output in every frame, [B]; the first frame of each clip is its picture."""
    if config.orbit:
        raise BadRequest("SV3D learns from renders with known cameras, which clips do not carry; train another preset")
    network, stage = cast(SVD, model), kind_of(config).stages[config.stage]
    if stage.loss is not None:
        return stage.loss(model, batch, generator)
    if stage.images:
        batch = _single(batch, generator)
    made = batch.encoded or encode(network, batch.video)
    x0 = draw(made["moments"].to(network.unet.conv_in.weight), batch, generator) * config.latent_scale
    count = len(x0)
    condition = _condition(network, config, batch, made, generator)
    kept = batch.own(torch.rand(batch.count, generator=generator) >= stage.drop).to(x0)
    condition = replace(
        condition,
        context_B1C=condition.context_B1C * kept[:, None, None],
        picture_BCTHW=condition.picture_BCTHW * broadcast(kept * stage.given, x0),
    )
    draw_levels = losses.draw_levels("edm-lognormal", p_mean=stage.p_mean, p_std=stage.p_std, stratified=True)
    level = batch.own(draw_levels(SCHEDULE, batch.count, generator))
    eps = batch.own(torch.randn(batch.count, *x0.shape[1:], generator=generator)).to(x0)
    z = level.add_noise(x0, eps)
    alone = torch.ones(count, x0.shape[2], dtype=torch.bool, device=x0.device) if stage.images else None
    # A gradient nobody reads: where the first layers are frozen, torch 2.13 crashes in the backward pass of a CPU group
    # norm in channels-last memory whose weight needs a gradient and whose input needs none.
    scaled = (broadcast(V.scalings(level)[2], z) * z).requires_grad_(torch.is_grad_enabled())
    output = run_unet(network.unet, scaled, level, condition, alone)
    return V.loss(output.float(), x0, eps, level)


def _single(batch: Batch, generator: torch.Generator) -> Batch:
    """One frame of each clip: any of them, or the first of clips that were encoded beforehand."""
    if batch.encoded is not None:
        moments = batch.encoded["moments"][:, :, :1]
        return replace(batch, encoded={**batch.encoded, "moments": moments})
    chosen = batch.own(torch.randint(batch.video.shape[2], (batch.count,), generator=generator)).tolist()
    return replace(batch, video=torch.stack([clip[:, t : t + 1] for clip, t in zip(batch.video, chosen, strict=True)]))


def encode(model: SVD, video_BCTHW: Tensor) -> dict[str, Tensor]:
    """What the frozen networks make of clips, all that training needs of them besides the first frame's pixels.

    ``moments`` B×2c×T×h×w: mean and log-variance of the latents, not scaled; ``context`` B×context: the embedding of
    the clean first frame. The picture's own latents are not among them: their noise is new at every step.
    """
    count, frames = len(video_BCTHW), video_BCTHW.shape[2]
    with torch.no_grad():
        moments = model.vae.moments(video_BCTHW.transpose(1, 2).flatten(0, 1))
    context = model.image_encoder.embed(video_BCTHW[:, :, 0])
    return {"moments": moments.unflatten(0, (count, frames)).transpose(1, 2), "context": context}


def draw(moments_BCTHW: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
    """Latents drawn from their posterior, as sgm's first stage gives them to training."""
    mean, log_variance = moments_BCTHW.chunk(2, dim=1)
    noise = batch.own(torch.randn(batch.count, *mean.shape[1:], generator=generator))
    return mean + torch.exp(log_variance / 2) * noise.to(mean)


def _condition(
    network: SVD, config: Config, batch: Batch, made: Mapping[str, Tensor], generator: torch.Generator
) -> Condition:
    """The picture twice, its latents from a noised copy of it, and the clips' own numbers."""
    picture = batch.video[:, :, 0]
    amount = batch.own(torch.exp(NOISE_MEAN + NOISE_STD * torch.randn(batch.count, generator=generator)))
    noise = batch.own(torch.randn(batch.count, *picture.shape[1:], generator=generator)).to(picture)
    with torch.no_grad():
        latents = network.vae.encode(picture + amount.to(picture)[:, None, None, None] * noise)[:, :, None]
    numbers = {**numbers_of(config, batch), "augmentation": amount}
    told = torch.stack([numbers[name] for name, _ in config.scalars], dim=-1)[:, None]
    return Condition(made["context"].to(latents)[:, None], latents, told)


def numbers_of(config: Config, batch: Batch) -> dict[str, Tensor]:
    """Frame rate (less one) and motion bucket of each clip, [B]; the config's own where a clip's are not known."""
    count = len(batch.captions)
    unknown = torch.full((count,), torch.nan)
    fps = unknown if batch.fps is None else batch.fps.float().cpu()
    motion = unknown if batch.motion is None else batch.motion.float().cpu()
    buckets = bucket(motion, config.motion_middle)
    return {
        "fps": (fps - 1).clamp_min(0).where(fps.isfinite(), torch.tensor(config.fps - 1)),
        "motion_bucket": buckets.where(buckets.isfinite(), torch.tensor(config.motion_bucket)),
    }
