"""Sizes, sampling and vocabulary of the pocket model."""

from __future__ import annotations

from dataclasses import replace

from kinema.data import playroom
from kinema.families.opensora.config import V2, Config
from kinema.families.opensora.mmdit import MMDiTConfig

POCKET = replace(
    V2,
    frames=17,
    height=64,
    width=64,
    fps=8.0,
    steps=16,
    guidance=3.0,
    image_guidance=1.0,
    oscillates=False,
    motion_score=None,
    shift=3.0,
    transformer=MMDiTConfig(
        channels=32,
        patch=1,
        text=128,
        vector=128,
        width=192,
        heads=3,
        mlp=2.625,
        double_blocks=1,
        single_blocks=4,
        axes=(16, 24, 24),
    ),
    vae="pocket",
    text_length=24,
    words=tuple(playroom.vocabulary()),
)

PRESETS: dict[str, Config] = {"pocket": POCKET}
