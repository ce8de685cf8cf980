"""How VDM is trained: one noise level a clip, uniform in time on the cosine schedule, and pictures beside it.

Letters: B batch, T frames of the clip, K pictures, F = T + K.
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
    """The preset's own training as `training.loop` takes it."""
    told = config.training
    return TrainingSettings(
        steps=told.steps,
        batch=told.batch,
        learning_rate=told.learning_rate,
        images=told.images,
        frameskip=told.frameskip,
        text_drop=told.text_drop if config.conditional else 0.0,
    )


def loss(model: nn.Module, config: Config, batch: Batch, generator: torch.Generator) -> Tensor:
    """Mean-squared error of the network's own target (eps or v), ``[B]``, each frame and picture counting alike.

    Pictures have noise levels of their own: they are items of a batch that share only the forward pass
    (§3.1). Empty captions train the null condition. Canvases are honoured by guidance, so ``batch.mask``
    plays no part in training.
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

    noisy = [_beside(level.add_noise(x0, eps), size) for level, x0, eps in zip(levels, parts, noises, strict=True)]
    log_snr_BF = levels[0].log_snr.reshape(size, 1).expand(size, frames)
    if count:
        log_snr_BF = torch.cat([log_snr_BF, levels[1].log_snr.reshape(size, count)], dim=1)
    output = model(torch.cat(noisy, dim=2), log_snr_BF.to(video), _conditions(model, config, batch), independent=count)

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


def _beside(part: Tensor, size: int) -> Tensor:
    """Pictures (B·K)×C×1×H×W as K more frames of B items; clips as they are."""
    return rearrange(part, "(b k) c t h w -> b c (k t) h w", b=size)


def _conditions(model: nn.Module, config: Config, batch: Batch) -> Tensor | None:
    """Condition vectors [B, F, E]: the clip's caption on its frames, each picture's own on it."""
    captions = list(batch.captions)
    size, frames = batch.video.shape[0], batch.video.shape[2]
    vectors = encode(model, config, captions + [caption for row in batch.image_captions for caption in row])
    if vectors is None:
        return None
    clip_BTE = vectors[:size, None].expand(-1, frames, -1)
    if batch.images is None:
        return vectors
    return torch.cat([clip_BTE, vectors[size:].unflatten(0, batch.images.shape[:2])], dim=1)
