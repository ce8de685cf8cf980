"""Training settings of the pocket model on playroom, per training stage, for two CPU cores (docs/notes/0009)."""

from __future__ import annotations

from dataclasses import replace

from kinema.data.playroom import Playroom
from kinema.families.animatediff.config import Stage
from kinema.system import TrainingSettings

# LoRAs train with AdamW.
_LORA = {
    "steps": 300, "batch": 8, "learning_rate": 2e-3, "optimiser": "adamw", "warmup": 10, "cooldown": 0.5, "ema": 0.98,
}  # fmt: skip
_POCKET = TrainingSettings(
    steps=1000, batch=64, learning_rate=3e-3, optimiser="muon", weight_decay=0.01, warmup=50, cooldown=0.4, ema=0.995,
    text_drop=0.1, playroom=Playroom("scenic"), lora=_LORA,
)  # fmt: skip
SETTINGS: dict[Stage, TrainingSettings] = {
    "image": _POCKET,
    # Stays close to the base, so that the base's motion module still works.
    "style": replace(_POCKET, steps=960, learning_rate=1e-3, warmup=10, cooldown=0.7, ema=0.98),
    "motion": replace(_POCKET, steps=2400, batch=8, learning_rate=2e-3),
    "sparsectrl": replace(_POCKET, steps=300, batch=8, learning_rate=2e-3, ema=0.98),
}
