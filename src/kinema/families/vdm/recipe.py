"""VDM training: one noise level per clip, uniform in time on the cosine schedule, jointly on clips and images.

Letters: B batch, T frames of the clip, K images, F = T + K.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor, nn

from kinema.diffusion import losses
from kinema.diffusion.parameterise import EPS, X0, Parameterisation, V, Weighting
from kinema.diffusion.schedules import CosineLogSNR, NoiseLevel
from kinema.families.vdm.condition import encode
from kinema.families.vdm.config import Config
from kinema.system import Batch, TrainingSettings

LEAST_SIGMA = 0.2
"""Bounds the weight of a network that predicts x0 at low noise, where little is left to learn."""


def schedule(config: Config) -> CosineLogSNR:
    return CosineLogSNR(shift=config.shift)


def parameterisation(config: Config) -> Parameterisation:
    return {"eps": EPS, "v": V, "x0": X0}[config.target]


def recipe(config: Config) -> TrainingSettings:
    """Return the preset's training settings."""
    training = config.training
    return TrainingSettings(
        steps=training.steps,
        batch=training.batch,
        learning_rate=training.learning_rate,
        optimiser=training.optimiser,
        images=training.images,
        frameskip=training.frameskip,
        text_drop=training.text_drop if config.conditional else 0.0,
    )


def loss(model: nn.Module, config: Config, batch: Batch, generator: torch.Generator) -> Tensor:
    """Mean squared error of the prediction target, ``[B]``, with equal weight for each frame and image.

    The error of a network that predicts x0 is weighted as that of v. Every image has its own noise level: images are
    separate batch items that only share the forward pass (§3.1). An image model (``per_frame``) has no clip: all frames
    are images with the clip's caption. Empty captions train the null condition. ``batch.mask`` is ignored: sampling
    honours canvases by guidance.
    """
    if config.training.per_frame:
        batch = _as_images(batch)
    video, images = batch.video, batch.images
    size, frames = video.shape[0], video.shape[2]
    count = 0 if images is None else images.shape[1]
    parts = [] if frames == 0 else [_Part(video, frames, batch.count)]
    if images is not None:
        parts.append(_Part(rearrange(images, "b k c h w -> (b k) c 1 h w"), count, batch.count * count))
    times = schedule(config)
    levels = [batch.own(losses.uniform_levels(times, part.draws, generator, stratified=True)) for part in parts]
    noises = [
        batch.own(torch.randn(part.draws, *part.clean.shape[1:], generator=generator)).to(video) for part in parts
    ]

    noisy = [
        _as_frames(level.add_noise(part.clean, eps), size)
        for part, level, eps in zip(parts, levels, noises, strict=True)
    ]
    log_snr = [
        level.log_snr.reshape(size, -1).expand(size, part.frames) for part, level in zip(parts, levels, strict=True)
    ]
    output = model(
        torch.cat(noisy, dim=2),
        torch.cat(log_snr, dim=1).to(video),
        _condition_vectors(model, config, batch),
        independent=count,
    )

    process = parameterisation(config)
    weighting = _weighting(config)
    total = torch.zeros(size, device=video.device)
    outputs = output.split([part.frames for part in parts], dim=2)
    for part, own, level, eps in zip(parts, outputs, levels, noises, strict=True):
        items = rearrange(own, "b c (k t) h w -> (b k) c t h w", t=part.clean.shape[2])
        each = process.loss(items, part.clean, eps, level, weighting).reshape(size, -1)
        total = total + each.sum(1) * part.clean.shape[2]
    return total / (frames + count)


def _weighting(config: Config) -> Weighting:
    if config.min_snr:
        return losses.min_snr(config.min_snr)
    return _velocity if config.target == "x0" else losses.UNIFORM


def _velocity(level: NoiseLevel) -> Tensor:
    """The error of v, which is that of x0 over sigma (arXiv 2511.13720, table 1), bounded at low noise."""
    return level.sigma.clamp(min=LEAST_SIGMA) ** -2


@dataclass(frozen=True)
class _Part:
    """The clips of a batch, or its images as clips of one frame."""

    clean: Tensor
    """[N, C, T, H, W]: a clip, or K images, for each of the B items."""
    frames: int
    """Frames of the network's input for each item: T, or K."""
    draws: int
    """Noise levels of the whole batch, of which this process has its own share."""


def _as_images(batch: Batch) -> Batch:
    """The same batch with every frame as an image, and clips without frames."""
    return replace(batch, video=batch.video[:, :, :0], images=rearrange(batch.video, "b c t h w -> b t c h w"))


def _as_frames(part: Tensor, size: int) -> Tensor:
    """Reshape images (B·K)×C×1×H×W to K frames of B items; clips are unchanged."""
    return rearrange(part, "(b k) c t h w -> b c (k t) h w", b=size)


def _condition_vectors(model: nn.Module, config: Config, batch: Batch) -> Tensor | None:
    """Condition vectors: [B, F, E], one caption for the clip's frames and one per image; [B, E] if all share one."""
    captions = list(batch.captions)
    size, frames = batch.video.shape[0], batch.video.shape[2]
    vectors = encode(model, config, captions + [caption for row in batch.image_captions for caption in row])
    if vectors is None:
        return None
    if batch.images is None or not batch.image_captions:
        return vectors
    clip_BTE = vectors[:size, None].expand(-1, frames, -1)
    return torch.cat([clip_BTE, vectors[size:].unflatten(0, batch.images.shape[:2])], dim=1)
