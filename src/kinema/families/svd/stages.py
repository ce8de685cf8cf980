"""SVD's training stages (Blattmann et al. 2023, §4 and appendix D)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Generator, Tensor, nn

from kinema.system import Batch


@dataclass(frozen=True)
class TrainingStage:
    """One training stage: noise distribution ``ln sigma ~ N(p_mean, p_std²)``, clip size and training settings.

    ``drop`` is the fraction of clips whose image conditioning (embedding and latents together) is dropped, which trains
    the negative branch of guidance.
    """

    p_mean: float
    p_std: float
    size: tuple[int, int, int]
    """Frames, height, width."""
    steps: int
    batch: int
    learning_rate: float
    ema: float = 0.9999
    drop: float = 0.15
    given: bool = True
    """Whether the image latents are concatenated with the noise. Pretraining has only the image embedding, in place of
    the paper's text: the published weights have no text encoder."""
    images: bool = False
    """Whether every frame is a separate image, so that temporal layers add nothing."""
    optimiser: str = "adamw"
    loss: Callable[[nn.Module, Batch, Generator], Tensor] | None = None
    """The loss [B] of a training stage that trains another network than the U-Net."""


STAGES: dict[str, TrainingStage] = {
    # I. From SD 2.1 to EDM: 1k steps of the time embedding only, then 30k. Batch and rate (unpublished) as in II.
    "image": TrainingStage(-1.2, 1.0, (1, 256, 384), 31_000, 1536, 1e-4, given=False, images=True),
    # II. 14 frames at low, then medium resolution, which needs more noise.
    "video": TrainingStage(-1.2, 1.0, (14, 256, 384), 150_000, 1536, 1e-4, given=False),
    "video-large": TrainingStage(0.0, 1.0, (14, 320, 576), 100_000, 768, 1e-4, given=False),
    # III. High quality: text to video; image to video at low resolution; the published models, tuned from the latter.
    "text": TrainingStage(0.5, 1.4, (14, 576, 1024), 50_000, 768, 3e-5, given=False),
    "base": TrainingStage(0.7, 1.6, (14, 320, 576), 50_000, 768, 3e-5),
    "finetune": TrainingStage(1.0, 1.6, (14, 576, 1024), 50_000, 768, 3e-5),
}

FULL = 320
"""Channels of the published networks; smaller ones keep their own clip size in every training stage."""
