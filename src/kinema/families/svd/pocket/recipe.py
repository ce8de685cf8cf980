"""Training of the pocket model on playroom, in two training stages for two CPU cores (docs/decisions/0004)."""

from __future__ import annotations

from typing import Any

from kinema.data.playroom import Playroom
from kinema.families.svd.pocket.losses import codec_loss
from kinema.families.svd.stages import TrainingStage

STAGES: dict[str, TrainingStage] = {
    "codec": TrainingStage(0.0, 1.0, (14, 64, 64), 900, 8, 2e-3, ema=0.99, loss=codec_loss),
    # Content of 8×8 latents stays visible through more noise than that of SVD's, and content of 14 frames through more
    # than an image's; motion is decided at high noise.
    "playroom": TrainingStage(0.3, 1.4, (14, 64, 64), 3400, 8, 2e-3, ema=0.995, optimiser="muon"),
}
SLOW = 4.0
"""Slow-down factor of clips, so that the same image appears at every motion bucket."""
WITHOUT = ("fades",)
"""Fading objects do not move, so a model trained on them would fade objects when asked for little motion."""
SETTINGS: dict[str, Any] = {
    "warmup": 50,
    "cooldown": 0.4,
    "playroom": Playroom("simple", slow=SLOW, without=WITHOUT),
}
