"""VDM training: one noise level per clip, uniform in time on the cosine schedule, jointly on clips and images.

Letters: B batch, T frames of the clip, K images, F = T + K.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from kinema.diffusion import losses
from kinema.diffusion.parameterise import EPS, Parameterisation, V
from kinema.diffusion.schedules import CosineLogSNR
from kinema.families.vdm.condition import encode
from kinema.families.vdm.config import Config
from kinema.system import Batch, TrainingSettings

SCHEDULE = CosineLogSNR()


def parameterisation(config: Config) -> Parameterisation:
    return EPS if config.target == "eps" else V


def recipe(config: Config) -> TrainingSettings:
    """Return the preset's training settings."""
    training = config.training
    return TrainingSettings(
        steps=training.steps,
        batch=training.batch,
        learning_rate=training.learning_rate,
        images=training.images,
        frameskip=training.frameskip,
        text_drop=training.text_drop if config.conditional else 0.0,
    )


def loss(model: nn.Module, config: Config, batch: Batch, generator: torch.Generator) -> Tensor:
    """Mean squared error of the prediction target (eps or v), ``[B]``, with equal weight for each frame and image.

    Every image has its own noise level: images are separate batch items that only share the forward pass (§3.1).
    Empty captions train the null condition. ``batch.mask`` is ignored: sampling honours canvases by guidance.
    """
    video, images = batch.video, batch.images
    size, frames = video.shape[0], video.shape[2]
    count = 0 if images is None else images.shape[1]
    parts = [video] if images is None else [video, rearrange(images, "b k c h w -> (b k) c 1 h w")]
    counts = [batch.count, batch.count * count][: len(parts)]
    levels = [batch.own(losses.uniform_levels(SCHEDULE, n, generator, stratified=True)) for n in counts]
    noises = [
        batch.own(torch.randn(n, *part.shape[1:], generator=generator)).to(part)
        for n, part in zip(counts, parts, strict=True)
    ]

    noisy = [_as_frames(level.add_noise(x0, eps), size) for level, x0, eps in zip(levels, parts, noises, strict=True)]
    log_snr_BF = levels[0].log_snr.reshape(size, 1).expand(size, frames)
    if count:
        log_snr_BF = torch.cat([log_snr_BF, levels[1].log_snr.reshape(size, count)], dim=1)
    output = model(
        torch.cat(noisy, dim=2), log_snr_BF.to(video), _condition_vectors(model, config, batch), independent=count
    )

    process = parameterisation(config)
    weighting = losses.min_snr(config.min_snr) if config.min_snr else losses.UNIFORM
    outputs = [output[:, :, :frames], rearrange(output[:, :, frames:], "b c k h w -> (b k) c 1 h w")]
    each = [
        process.loss(out, x0, eps, level, weighting)
        for out, x0, eps, level in zip(outputs[: len(parts)], parts, noises, levels, strict=True)
    ]
    if not count:
        return each[0]
    return (frames * each[0] + each[1].reshape(size, count).sum(1)) / (frames + count)


def _as_frames(part: Tensor, size: int) -> Tensor:
    """Reshape images (B·K)×C×1×H×W to K frames of B items; clips are unchanged."""
    return rearrange(part, "(b k) c t h w -> b c (k t) h w", b=size)


def _condition_vectors(model: nn.Module, config: Config, batch: Batch) -> Tensor | None:
    """Condition vectors: [B, F, E], one caption for the clip's frames and one per image; [B, E] without images."""
    captions = list(batch.captions)
    size, frames = batch.video.shape[0], batch.video.shape[2]
    vectors = encode(model, config, captions + [caption for row in batch.image_captions for caption in row])
    if vectors is None:
        return None
    clip_BTE = vectors[:size, None].expand(-1, frames, -1)
    if batch.images is None:
        return vectors
    return torch.cat([clip_BTE, vectors[size:].unflatten(0, batch.images.shape[:2])], dim=1)
