"""The stages of SVD's training (Blattmann et al. 2023, §4 and appendix D)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Generator, Tensor, nn

from kinema.system import Batch


@dataclass(frozen=True)
class TrainingStage:
    """One stage of the paper's training: ``ln sigma ~ N(p_mean, p_std²)``, its size and its figures.

    ``drop`` is the share of clips whose picture is dropped, embedding and latents together: the branch that
    guidance steers away from.
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
    """Whether the picture's latents stand beside the noise. Pretraining has the embedding alone, where the paper
    has text: the published weights have no text encoder."""
    images: bool = False
    """Every frame an image by itself: layers over time add nothing."""
    optimiser: str = "adamw"
    loss: Callable[[nn.Module, Batch, Generator], Tensor] | None = None
    """The loss [B] of a stage that trains another network than the U-Net."""


STAGES: dict[str, TrainingStage] = {
    # I. From SD 2.1 to EDM: 1k steps of the time embedding alone, then 30k. Batch and rate are not told: those of II.
    "image": TrainingStage(-1.2, 1.0, (1, 256, 384), 31_000, 1536, 1e-4, given=False, images=True),
    # II. 14 frames at low and then at middle resolution, where more noise is needed.
    "video": TrainingStage(-1.2, 1.0, (14, 256, 384), 150_000, 1536, 1e-4, given=False),
    "video-large": TrainingStage(0.0, 1.0, (14, 320, 576), 100_000, 768, 1e-4, given=False),
    # III. High quality: text to video; image to video at low resolution; and from there the published models.
    "text": TrainingStage(0.5, 1.4, (14, 576, 1024), 50_000, 768, 3e-5, given=False),
    "base": TrainingStage(0.7, 1.6, (14, 320, 576), 50_000, 768, 3e-5),
    "finetune": TrainingStage(1.0, 1.6, (14, 576, 1024), 50_000, 768, 3e-5),
}

FULL = 320
"""Channels of the published networks; smaller ones keep their own size in every stage."""
