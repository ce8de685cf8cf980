"""Zoetrope training: rectified flow in pixels, x0 prediction, velocity loss, mixed canvases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from einops import repeat
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.conditioning.pocket import PocketTokenizer
from kinema.data.playroom import Playroom, labels
from kinema.data.playroom.scene import Scene
from kinema.data.reading import EMPTY_WEIGHT, object_mask, reading_loss
from kinema.diffusion import losses
from kinema.diffusion.parameterise import X0
from kinema.diffusion.schedules import NoiseLevel, RectifiedFlow, broadcast
from kinema.families.zoetrope import sprite_losses
from kinema.families.zoetrope.config import Config
from kinema.families.zoetrope.sprite import SpriteEstimate
from kinema.system import Batch, TrainingSettings

RECIPE = TrainingSettings(
    steps=6000,
    batch=16,
    learning_rate=3e-3,
    optimiser="muon",
    weight_decay=0.01,
    warmup=100,
    cooldown=0.8,
    ema=0.999,
    text_drop=0.1,
    canvas_mix={
        "nothing": 0.6, "first": 0.2, "ends": 0.05, "prefix": 0.05, "suffix": 0.02, "every": 0.04, "region": 0.04,
    },
    playroom=Playroom(grammar="mixed"),
)  # fmt: skip
TINY = replace(RECIPE, steps=200, batch=4, warmup=10)

draw_levels = losses.draw_levels("logit-normal", mean=0.3, std=1.5, stratified=True)
"""Logit-normal times, then shifted toward noise by the config, where colour, shape and direction are decided."""
MIN_SIGMA = 0.3
"""Bounds the velocity weighting 1/sigma² at low noise, where little is left to learn."""


def loss(model: nn.Module, config: Config, batch: Batch, generator: torch.Generator) -> Tensor:
    """Velocity error of the x0 prediction, ``‖x0 - x̂0‖²/sigma²``, over unknown pixels, plus auxiliary losses; ``[B]``.

    The flow's velocity is (z - x0)/sigma, so its error is the x0 error over sigma (arXiv 2511.13720, eq. 7).
    """
    x0 = batch.video
    level = batch.own(draw_levels(RectifiedFlow(config.shift), batch.count, generator))
    eps = batch.own(torch.randn(batch.count, *x0.shape[1:], generator=generator)).to(x0)
    z = level.add_noise(x0, eps).to(x0)
    _, _, c_in = X0.scalings(level)
    ids = PocketTokenizer(config.words).encode(batch.captions, config.text_length).to(x0.device)
    estimate = model(broadcast(c_in, z) * z, level.log_snr.to(x0), ids, x0, batch.mask)
    weight = 1 - batch.mask
    labelled = any(batch.scenes)
    if labelled:
        cover = cover_targets(batch.scenes, estimate.sketch.detach().float())
        near = object_mask(batch.scenes, cover)
        weight = weight * (1 + localisation(level).to(x0) * pixel_emphasis(cover, near, x0))
    main_B = X0.loss(estimate.x0.float(), x0, eps, level, weighting=velocity, mask=weight)
    if not labelled:
        unused = estimate.read.sum() + estimate.sketch.sum()
        if estimate.sprite is not None:
            s = estimate.sprite
            parts = (s.composite_BCTHW, s.angle_BTA, s.cover_logits_B1THW, s.single_B)
            unused = unused + sum(part.sum() for part in parts)
        return main_B + 0 * unused  # gives every parameter a gradient
    reading_B = reading_loss(estimate.read.float(), batch.scenes, config.grid, camera=False)
    sketch_B = SKETCH_WEIGHT * placement_loss(estimate.sketch.float(), cover, near, batch.scenes)
    static_B = torch.tensor([s is not None and s.camera == "still" for s in batch.scenes], device=x0.device)
    ground = to_pixels(cover == 0, x0)
    backdrop_B = X0.loss(estimate.backdrop.float(), x0, eps, level, weighting=velocity, mask=ground)
    share_B = share_loss(estimate.share.float(), ground, to_pixels(near, x0))
    background_B = static_B * (BACKDROP_WEIGHT * backdrop_B + SHARE_WEIGHT * share_B)
    loss_B = main_B + READING_WEIGHT * reading_B + sketch_B + background_B
    if estimate.sprite is None:
        return loss_B
    composite_B = X0.loss(estimate.sprite.composite_BCTHW.to(x0), x0, eps, level, weighting=velocity, mask=weight)
    return loss_B + sprite_loss(estimate.sprite, batch.scenes, composite_B, localisation(level).to(x0).flatten())


def sprite_loss(
    estimate: SpriteEstimate, scenes: Sequence[Scene | None], composite_B: Tensor, localised_B: Tensor
) -> Tensor:
    """Loss of the sprite, ``[B]``; only coverage and outline count while noise still hides the object."""
    target = sprite_losses.scene_targets(scenes, estimate, estimate.composite_BCTHW.shape[-1])
    cover = cover_targets(scenes, estimate.cover_logits_B1THW.detach())
    cover_B = sprite_losses.COVER_WEIGHT * placement_loss(
        estimate.cover_logits_B1THW, cover, object_mask(scenes, cover), scenes
    )
    single_B = sprite_losses.SINGLE_WEIGHT * sprite_losses.single_object_loss(estimate, scenes, target)
    shape_B = sprite_losses.SHAPE_WEIGHT * sprite_losses.shape_loss(estimate.sprite_BCNN, target)
    pose_B = sprite_losses.COMPOSITE_WEIGHT * composite_B + sprite_losses.POSE_WEIGHT * sprite_losses.pose_loss(
        estimate, target
    )
    return cover_B + single_B + shape_B + target.single_B * localised_B * pose_B


def cover_targets(scenes: Sequence[Scene | None], like_B1THW: Tensor) -> Tensor:
    """Fraction of each cell covered by objects, 0 to 1, in the shape of ``like``; 0 for clips without a scene graph."""
    height, width = like_B1THW.shape[-2:]
    cover = torch.zeros_like(like_B1THW)
    for own, scene in zip(cover, scenes, strict=True):
        if scene is not None:
            own[0] = torch.from_numpy(labels.covered(scene, height, width))
    return cover


def pixel_emphasis(cover_B1Thw: Tensor, near_B1Thw: Tensor, like_BCTHW: Tensor) -> Tensor:
    """Extra weight of each pixel, ``[B, 1, T, H, W]``, by its cell's coverage; 0 for background far from objects."""
    on_outline = (cover_B1Thw > 0) & (cover_B1Thw < 1)
    return to_pixels(OBJECT_EMPHASIS * near_B1Thw + EDGE_EMPHASIS * on_outline, like_BCTHW)


def to_pixels(cells_B1Thw: Tensor, like_BCTHW: Tensor) -> Tensor:
    """Repeat each cell's value over its pixels, ``[B, 1, T, H, W]``."""
    height, width = (like_BCTHW.shape[i] // cells_B1Thw.shape[i] for i in (-2, -1))
    return repeat(cells_B1Thw.to(like_BCTHW), "b c t h w -> b c t (h p) (w q)", p=height, q=width)


def localisation(level: NoiseLevel) -> Tensor:
    """How well an object can be localised at a noise level, 0 to 1, ``[B, 1, 1, 1, 1]``: see ``LOCALISED_SIGMA``."""
    return ((LOCALISED_SIGMA - level.sigma) / 0.1).clamp(0, 1)[:, None, None, None, None]


def placement_loss(
    sketch_B1Thw: Tensor, cover_B1Thw: Tensor, near_B1Thw: Tensor, scenes: Sequence[Scene | None]
) -> Tensor:
    """Cross-entropy of the sketch against the coverage, ``[B]``; cells far from objects have weight ``EMPTY``.

    0 for clips without a scene graph.
    """
    weight = EMPTY_WEIGHT + (1 - EMPTY_WEIGHT) * near_B1Thw
    labelled_B = torch.tensor([s is not None for s in scenes], device=weight.device)
    error = F.binary_cross_entropy_with_logits(sketch_B1Thw, cover_B1Thw, reduction="none") * weight
    return labelled_B * error.flatten(1).sum(1) / weight.flatten(1).sum(1)


def share_loss(share_B1THW: Tensor, ground_B1THW: Tensor, near_B1THW: Tensor) -> Tensor:
    """Cross-entropy of the backdrop's share against the background mask, ``[B]``, weighted as in `placement_loss`."""
    weight = EMPTY_WEIGHT + (1 - EMPTY_WEIGHT) * near_B1THW
    error = F.binary_cross_entropy_with_logits(share_B1THW, ground_B1THW, reduction="none") * weight
    return error.flatten(1).sum(1) / weight.flatten(1).sum(1)


OBJECT_EMPHASIS, EDGE_EMPHASIS, LOCALISED_SIGMA = 2.0, 10.0, 0.97
"""Extra weight of pixels near an object and on its outline, at sigma below ``LOCALISED_SIGMA``. Most of a clip's error
comes from background textures and marks that no caption describes, so without this outlines stayed round long after
their words were learned. At stronger noise the object's position is undetermined, and weights that depend on it would
teach the network to show the object everywhere."""
READING_WEIGHT = 0.01
"""Weight of the classification (reading) loss. A word affects a small part of the pixel error, so words were learned
last; classifying the tokens' content gives them a direct gradient from the first step. At this weight the tokens'
gradient from reading starts at about twice that from pixels, and falls as reading improves."""
SKETCH_WEIGHT = 0.1
"""Weight of the sketch loss. Corners of an outline are few pixels; predicting coverage directly from the tokens,
without colours, textures and noise, gives them a gradient from the first step."""

BACKDROP_WEIGHT, SHARE_WEIGHT = 0.5, 0.02
"""Weights of the losses of the backdrop (over background pixels) and of its share, for clips with a static camera.
The main loss alone trained neither: the share stayed at its initial value for a hundred steps."""


def velocity(level: NoiseLevel) -> Tensor:
    return level.sigma.clamp(min=MIN_SIGMA).pow(-2)
