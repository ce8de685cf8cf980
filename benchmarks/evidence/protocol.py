"""What was fixed before anything generated was measured (docs/decisions/0023-evidence.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SIDE, FRAMES, FPS = 32, 16, 8.0
GRAMMAR = "simple"
BATCH, COMMON_STEPS, STEPS, LEARNING_RATE = 8, 1600, 2500, 2e-3
"""Clips a step, steps of the common stage, steps of the video model after it, peak learning rate of all runs."""
TARGET, SHIFT = "x0", 8.0
"""What the networks predict, and the shift of the noise levels; the preset's v without shift was tried first
(docs/decisions/0023)."""
WIDTHS = (4, 8)
"""Sides of the feature maps that have attention: those of `vdm/pocket` at half its side."""
SAMPLER, SAMPLING_STEPS, GUIDANCE = "ddim", 32, 2.0
PER_PROMPT = 2
"""Clips of each prompt and arm, from different seeds."""
STRENGTH = 3 / 32
"""Of SDEdit from the frame before: the share of the sampling steps that it runs, from the level at which noise and
signal are equal."""


@dataclass(frozen=True)
class Model:
    """A model to train: what a step sees of each clip, and its number of steps."""

    name: str
    title: str
    per_frame: bool = False
    images: int = 0
    matched: bool = False
    """Whether its steps are matched to the video model's training operations; else it has as many steps."""


COMMON = Model("common", "common stage", per_frame=True)
"""An image model, from whose weights all others are trained further."""
MODELS = {
    model.name: model
    for model in (
        COMMON,
        Model("image", "image model", per_frame=True, matched=True),
        Model("video", "video model"),
        Model("joint", "video model with 4 images a clip", images=4),
    )
}


@dataclass(frozen=True)
class Arm:
    """A way to make the frames of a clip from a prompt."""

    name: str
    title: str
    model: str


ARMS = {
    arm.name: arm
    for arm in (
        Arm("video", "as a video", "video"),
        Arm("fresh", "frame by frame, fresh noise", "image"),
        Arm("same", "frame by frame, the same noise", "image"),
        Arm("sdedit", "frame by frame, SDEdit from the frame before", "image"),
    )
}
REAL = "real"


@cache
def prompts() -> Sequence[str]:
    """The 64 frozen prompts: different texts, whose combinations no training or tuning clip shows."""
    return tuple((Path(__file__).parent / "prompts.txt").read_text(encoding="utf-8").splitlines())


def seed_of(index: int, repetition: int) -> int:
    """Seed of the clip of prompt ``index``, for every arm and for the real clip."""
    return 100_000 * (repetition + 1) + index


def fingerprint() -> dict[str, Any]:
    """The settings and the prompts that measurements depend on; they cannot be mixed with those of others."""
    text = "\n".join(prompts())
    return {
        "size": [FRAMES, SIDE, SIDE, FPS],
        "sampling": [SAMPLER, SAMPLING_STEPS, GUIDANCE, STRENGTH, PER_PROMPT],
        "prompts": hashlib.sha256(text.encode()).hexdigest(),
    }
