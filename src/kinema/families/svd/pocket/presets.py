"""Sizes and sampling defaults of the pocket model."""

from __future__ import annotations

from dataclasses import replace

from kinema.families.svd.config import SVD

POCKET = replace(
    SVD,
    height=64,
    width=64,
    steps=20,
    guidance=(2.0, 2.0),
    channels=(64, 96),
    layers=1,
    heads=(2, 3),
    context=128,
    scalars=(("fps", 32), ("motion_bucket", 64), ("augmentation", 32)),
    latent_channels=16,
    latent_scale=1.0,
    vae_channels=(64, 96),
    vae_layers=1,
    decoder="image",
    clip_width=64,
    motion_middle=0.015,
    stage="playroom",
    sigma_max=80.0,
    pocket=True,
    patch=4,
)  # U-Net 3,755,740, autoencoder 1,085,920, image encoder 102,720: 9.9 MB in fp16

PRESETS = {"pocket": POCKET}
