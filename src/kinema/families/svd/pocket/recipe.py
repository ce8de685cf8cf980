"""How the pocket is trained on playroom, in two stages sized for two CPU cores (docs/decisions/0004)."""

from __future__ import annotations

from typing import Any

from kinema.data.playroom import Playroom
from kinema.families.svd.pocket.losses import codec_loss
from kinema.families.svd.stages import TrainingStage

STAGES: dict[str, TrainingStage] = {
    "codec": TrainingStage(0.0, 1.0, (14, 64, 64), 900, 8, 2e-3, ema=0.99, loss=codec_loss),
    # 8×8 latents show their content through more noise than SVD's do through theirs, and a clip of 14 frames through
    # more than an image; motion is decided at the noise end.
    "playroom": TrainingStage(0.3, 1.4, (14, 64, 64), 3400, 8, 2e-3, ema=0.995, optimiser="muon"),
}
SLOW = 4.0
"""So that one picture has been seen at every motion bucket."""
WITHOUT = ("fades",)
"""What fades away does not move: asked for little motion, a model would make things vanish."""
FIGURES: dict[str, Any] = {
    "warmup": 50,
    "cooldown": 0.4,
    "playroom": Playroom("simple", slow=SLOW, without=WITHOUT),
}
