"""How zoetrope is trained: rectified flow in pixels, x0 prediction, velocity loss, mixed canvases."""

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
from kinema.data.reading import EMPTY, about, reading_loss
from kinema.diffusion import losses
from kinema.diffusion.parameterise import X0
from kinema.diffusion.schedules import NoiseLevel, RectifiedFlow, broadcast
from kinema.families.zoetrope import lessons
from kinema.families.zoetrope.config import Config
from kinema.families.zoetrope.sprite import Seen
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
"""Logit-normal times, then shifted toward noise by the config: colour, shape and direction are decided there."""
LEAST_SIGMA = 0.3
"""Bounds the velocity weighting 1/sigma² near clean frames, where there is little left to learn."""


def loss(model: nn.Module, config: Config, batch: Batch, generator: torch.Generator) -> Tensor:
    """Velocity error of the x0 prediction, ``‖x0 - x̂0‖²/sigma²``, over the pixels not given; ``[B]``.

    The flow's velocity is (z - x0)/sigma, so its error is the x0 error over sigma (arXiv 2511.13720, eq. 7).
    """
    x0 = batch.video
    level = batch.own(draw_levels(RectifiedFlow(config.shift), batch.count, generator))
    eps = batch.own(torch.randn(batch.count, *x0.shape[1:], generator=generator)).to(x0)
    z = level.add_noise(x0, eps).to(x0)
    _, _, c_in = X0.scalings(level)
    ids = PocketTokenizer(config.words).encode(batch.captions, config.text_length).to(x0.device)
    made = model(broadcast(c_in, z) * z, level.log_snr.to(x0), ids, x0, batch.mask)
    counts = 1 - batch.mask
    taught = any(batch.scenes)
    if taught:
        cover = covers(batch.scenes, made.sketch.detach().float())
        near = about(batch.scenes, cover)
        counts = counts * (1 + found(level).to(x0) * emphasis(cover, near, x0))
    drawn = X0.loss(made.x0.float(), x0, eps, level, weighting=velocity, mask=counts)
    if not taught:
        unused = made.read.sum() + made.sketch.sum()
        if made.sprite is not None:
            s = made.sprite
            unused = unused + sum(part.sum() for part in (s.laid_BCTHW, s.turn_BTA, s.cover_B1THW, s.alone_B))
        return drawn + 0 * unused  # every parameter has a gradient, whatever the clips
    misnamed = reading_loss(made.read.float(), batch.scenes, config.grid, camera=False)
    misdrawn = SKETCHING * misplaced(made.sketch.float(), cover, near, batch.scenes)
    still_B = torch.tensor([s is not None and s.camera == "still" for s in batch.scenes], device=x0.device)
    ground = spread(cover == 0, x0)
    behind = X0.loss(made.still.float(), x0, eps, level, weighting=velocity, mask=ground)
    parted = unparted(made.share.float(), ground, spread(near, x0))
    loss_B = drawn + READING * misnamed + misdrawn + still_B * (BEHIND * behind + PARTING * parted)
    if made.sprite is None:
        return loss_B
    laid = X0.loss(made.sprite.laid_BCTHW.to(x0), x0, eps, level, weighting=velocity, mask=counts)
    return loss_B + taught_sprite(made.sprite, batch.scenes, laid, found(level).to(x0).flatten())


def taught_sprite(made: Seen, scenes: Sequence[Scene | None], laid_B: Tensor, found_B: Tensor) -> Tensor:
    """What the sprite gets wrong, ``[B]``; where the noise still hides the object, of its outline alone."""
    true = lessons.truth(scenes, made, made.laid_BCTHW.shape[-1])
    cover = covers(scenes, made.cover_B1THW.detach())
    outlines = misplaced(made.cover_B1THW, cover, about(scenes, cover), scenes)
    named = lessons.OUTLINING * outlines + lessons.TELLING * lessons.untold(made, scenes, true)
    shaped = lessons.SHAPING * lessons.misshapen(made.picture_BCNN, true)
    seen = lessons.LAYING * laid_B + lessons.POSING * lessons.misposed(made, true)
    return named + shaped + true.alone_B * found_B * seen


def covers(scenes: Sequence[Scene | None], like_B1THW: Tensor) -> Tensor:
    """The share of each cell that objects cover, in 0 to 1, shaped as ``like``; 0 where there is no scene graph."""
    height, width = like_B1THW.shape[-2:]
    cover = torch.zeros_like(like_B1THW)
    for own, scene in zip(cover, scenes, strict=True):
        if scene is not None:
            own[0] = torch.from_numpy(labels.covered(scene, height, width))
    return cover


def emphasis(cover_B1Thw: Tensor, near_B1Thw: Tensor, like_BCTHW: Tensor) -> Tensor:
    """How much more each pixel counts than ground far from objects, ``[B, 1, T, H, W]``, from the cells it lies in."""
    crossed = (cover_B1Thw > 0) & (cover_B1Thw < 1)  # by an outline
    return spread(OBJECT * near_B1Thw + EDGE * crossed, like_BCTHW)


def spread(cells_B1Thw: Tensor, like_BCTHW: Tensor) -> Tensor:
    """Each cell's value at the pixels in it, ``[B, 1, T, H, W]``."""
    height, width = (like_BCTHW.shape[i] // cells_B1Thw.shape[i] for i in (-2, -1))
    return repeat(cells_B1Thw.to(like_BCTHW), "b c t h w -> b c t (h p) (w q)", p=height, q=width)


def found(level: NoiseLevel) -> Tensor:
    """How far the place of an object is known at a level, 0 to 1, ``[B, 1, 1, 1, 1]``: see ``FOUND``."""
    return ((FOUND - level.sigma) / 0.1).clamp(0, 1)[:, None, None, None, None]


def misplaced(sketch_B1Thw: Tensor, cover_B1Thw: Tensor, near_B1Thw: Tensor, scenes: Sequence[Scene | None]) -> Tensor:
    """Cross-entropy of the sketch against the cover, ``[B]``; cells far from objects count ``EMPTY`` times.

    Clips without a scene graph count nothing.
    """
    weight = EMPTY + (1 - EMPTY) * near_B1Thw
    known_B = torch.tensor([s is not None for s in scenes], device=weight.device)
    wrong = F.binary_cross_entropy_with_logits(sketch_B1Thw, cover_B1Thw, reduction="none") * weight
    return known_B * wrong.flatten(1).sum(1) / weight.flatten(1).sum(1)


def unparted(share_B1THW: Tensor, ground_B1THW: Tensor, near_B1THW: Tensor) -> Tensor:
    """Cross-entropy of the backdrop's share against where no object is, ``[B]``; far from objects as in `misplaced`."""
    weight = EMPTY + (1 - EMPTY) * near_B1THW
    wrong = F.binary_cross_entropy_with_logits(share_B1THW, ground_B1THW, reduction="none") * weight
    return wrong.flatten(1).sum(1) / weight.flatten(1).sum(1)


OBJECT, EDGE, FOUND = 2.0, 10.0, 0.97
"""How much more the pixels about an object and those of its outline count, below the noise level ``FOUND``. The error
of a clip is mostly that of textures behind the object and marks on it, which no caption tells: outlines stayed round
long after the words for them were known. Not in the strongest noise: while it is open where the object is, weights that
know would teach to see it everywhere."""
READING = 0.01
"""Weight of the reading beside the drawing. What a word changes in the picture is a small part of the pixels' error, so
the words were learnt last; naming what stands where gives them a gradient of their own from the first step. At this
weight the tokens' gradient from reading is about twice that from drawing at first, and falls with what is read."""
SKETCHING = 0.1
"""Weight of the sketch beside the drawing. An outline's corners are few pixels; asked of the tokens themselves, apart
from colours, textures and the noise around them, they have a gradient from the first step."""

BEHIND, PARTING = 0.5, 0.02
"""Weights of the backdrop's picture, over the pixels that no object covers, and of its share: taught from clips whose
camera is still. Left to the drawing alone, neither was learnt (the share kept its start for a hundred steps)."""


def velocity(level: NoiseLevel) -> Tensor:
    return level.sigma.clamp(min=LEAST_SIGMA).pow(-2)
