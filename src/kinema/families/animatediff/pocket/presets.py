"""Sizes, sampling settings and vocabulary of the pocket model."""

from __future__ import annotations

from dataclasses import replace

from kinema.conditioning.clip_text import ClipTextSize, WordTokenizer
from kinema.data import playroom
from kinema.families.animatediff.config import IMAGE, Betas, Config


def with_playroom_words(config: Config) -> Config:
    """Set the playroom's words as the vocabulary."""
    words = tuple(playroom.vocabulary())
    return replace(config, words=words, text=(replace(config.text[0], vocabulary=WordTokenizer(words).size),))


BETAS: Betas = ("linear", 0.00085, 0.024)
"""Reaches a signal-to-noise ratio of e^-12, as colours and positions of a pixel clip survive much noise."""
POCKET = with_playroom_words(
    replace(
        IMAGE,
        height=64,
        width=64,
        fps=6.0,
        steps=25,
        sampler="vdm-ancestral",
        spacing="trailing",
        guidance=3.0,
        channels=(64, 96),
        layers=1,
        depths=(0, 1),
        heads=(4, 4),
        context=96,
        in_channels=48,
        text=(ClipTextSize(width=96, layers=1, heads=4, mlp=288, length=24),),
        latent_channels=48,
        latent_scale=1.0,
        vae_channels=(),
        patch=4,
        groups=8,
        predicts="x0",
        betas=BETAS,
        image_betas=BETAS,
        stage="image",
    )
)  # 2,693,388 with the playroom's words
POCKET_MOTION = replace(POCKET, motion="v2", motion_mid=True, positions=8, frames=8, stage="motion")

PRESETS = {"pocket": POCKET, "pocket-motion": POCKET_MOTION}
