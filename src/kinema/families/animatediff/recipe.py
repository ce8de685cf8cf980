"""How the parts are trained (Guo et al. 2023, §4; 2023b, §3): each on its own, while all the others stand still.

A motion module on clips, the image model on single frames of them, SparseCtrl on clips of which it sees some frames.
Released by the authors for v1's motion module only: 16
frames of 256 pixels, every fourth, AdamW at 1e-4, the text dropped for a tenth; the image model at 1e-5.

Letters: B clips, T frames, C channels, H W latent rows and columns, L context tokens.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Generator, Tensor, nn

from kinema import processor
from kinema.conditioning.clip_text import rows
from kinema.data import styles
from kinema.diffusion.parameterise import EPS, X0, Parameterisation
from kinema.diffusion.schedules import DiscreteBetas, NoiseLevel
from kinema.families.animatediff import conditioning
from kinema.families.animatediff.conditioning import Condition
from kinema.families.animatediff.config import Config
from kinema.families.animatediff.control.steering import steer
from kinema.families.animatediff.kind import Aim
from kinema.families.animatediff.kinds import kind_of
from kinema.families.animatediff.model import AnimateDiff
from kinema.nn.ldm_unet import channels_last
from kinema.system import Batch, TrainingSettings
from kinema.vae.kl2d import ImageCodec

RECIPE = TrainingSettings(
    steps=500_000,
    batch=4,
    learning_rate=1e-4,
    weight_decay=0.01,
    ema=0.9999,
    text_drop=0.1,
    frameskip=4,
    # The authors never told those of a LoRA: people train MotionLoRAs for a few thousand steps at 1e-4.
    lora={"steps": 5000, "learning_rate": 1e-4},
)
IMAGE_RATE = 1e-5
TINY = replace(
    RECIPE, steps=200, batch=4, warmup=10, learning_rate=1e-3, ema=0.99, frameskip=1, lora={"learning_rate": 1e-4}
)


def recipe(config: Config) -> TrainingSettings:
    """The figures of the config's stage; small ones for small networks."""
    if config.trains in (own := kind_of(config).recipes):
        return own[config.trains]
    if config.channels[0] < 64:
        return TINY
    return RECIPE if config.trains in ("motion", "sparsectrl") else replace(RECIPE, learning_rate=IMAGE_RATE)


# ------------------------------------------------------------------------------------ the network


def schedule_of(config: Config) -> DiscreteBetas:
    return DiscreteBetas(*config.betas)


def image_schedule_of(config: Config) -> DiscreteBetas:
    return DiscreteBetas(*config.image_betas)


def predicted(config: Config) -> Parameterisation:
    """What the U-Net predicts."""
    return X0 if config.predicts == "x0" else EPS


def run_unet(model: AnimateDiff, config: Config, z_BCTHW: Tensor, level: NoiseLevel, condition: Condition) -> Tensor:
    """The U-Net's output. A single frame is told its noise level as the image model was trained: on its own betas."""
    schedule = schedule_of(config) if condition.motion else image_schedule_of(config)
    dtype, batch = model.unet.conv_in.weight.dtype, len(z_BCTHW)
    context = condition.context_BKLC.to(dtype)
    if context.shape[1] > 1:  # a row for every frame of every clip
        context = context.expand(batch, -1, -1, -1)
    context = context.flatten(0, 1)
    step = processor.moved(schedule.timestep(level.log_snr), z_BCTHW.device)
    added, shown = condition.added_BV, condition.shown
    control = None
    if shown is not None and model.sparse is not None:
        control = model.sparse(
            shown.given_BCTHW, shown.mask_B1THW, step, context, shown.scale_T, condition.moving.views
        )
    told = (z_BCTHW, step, context, None if added is None else added.expand(batch, -1))
    if (steered := steer(model, condition.steerings, told, level)) is not None:
        control = steered if control is None else control + steered
    return model.unet(
        z_BCTHW.to(dtype),
        step,
        context,
        told[-1],
        motion=condition.motion,
        moving=condition.moving,
        control=control,
        pictures=[picture.of_batch(batch) for picture in condition.pictures],
        first_BCTHW=condition.first_BCTHW,
    )


# --------------------------------------------------------------------------------------- the loss


def loss(model: nn.Module, config: Config, batch: Batch, generator: Generator) -> Tensor:
    """Error of the prediction at a level drawn for each clip, [B]."""
    network, moves = cast(AnimateDiff, model), config.trains in ("motion", "sparsectrl")
    channels_last(network.unet)
    if not moves:
        batch = single(batch, generator)
    x0 = encode(network, config, batch.video) if batch.encoded is None else batch.encoded["latents"].to(batch.video)
    context, added = _captions(network, config, batch)
    schedule = schedule_of(config) if moves else image_schedule_of(config)
    level, step = kind_of(config).draw(schedule, batch.count, generator, moves=moves)
    level, step = batch.own(level), batch.own(step)
    eps = batch.own(torch.randn(batch.count, *x0.shape[1:], generator=generator)).to(x0)
    z, step = level.add_noise(x0, eps), processor.moved(step, x0.device)
    control = None
    if config.trains == "sparsectrl" and network.sparse is not None:
        channels_last(network.sparse)
        given, mask = show(config, batch, x0, generator)
        control = network.sparse(given, mask, step, context)
    # One row of context a clip: its frames share it.
    motion = moves and config.motion != "none"
    predict = partial(network.unet, z, step, context, added, motion=motion, control=control)
    return kind_of(config).error(network, batch, Aim(predicted(config), x0, eps, level), predict)


def single(batch: Batch, generator: Generator) -> Batch:
    """One frame of each clip, any of them; of a clip of more its scene graph is left out, which is of all."""
    frames = batch.video.shape[2]
    if batch.encoded is not None:
        frames = batch.encoded["latents"].shape[2]
    if frames == 1:
        return batch
    chosen = batch.own(torch.randint(frames, (batch.count,), generator=generator)).tolist()

    def cut(x_BCTHW: Tensor) -> Tensor:
        return torch.stack([x[:, t : t + 1] for x, t in zip(x_BCTHW, chosen, strict=True)])

    if batch.encoded is not None:
        return replace(batch, encoded={"latents": cut(batch.encoded["latents"])}, scenes=())
    return replace(batch, video=cut(batch.video), scenes=())


@torch.no_grad()
def encode(network: AnimateDiff, config: Config, video_BCTHW: Tensor) -> Tensor:
    """Scaled latents B×C×T×H×W of clips."""
    return ImageCodec(network.vae, config.latent_scale).encode(video_BCTHW)


def _captions(network: AnimateDiff, config: Config, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """The first row of each caption, B×L×C, and SDXL's added vector."""
    tokenizer = conditioning.tokenizer_of(config, batch.weights)
    if config.words:
        ids = torch.cat([rows(tokenizer, text, config.text[0].length)[:1] for text in batch.captions])
        return network.text_encoder(ids.to(batch.video.device), tokenizer.end)[0], None
    with torch.no_grad():
        told = [conditioning.encode_text(network, config, tokenizer, text) for text in batch.captions]
    context = torch.cat([states[:, : config.text[0].length] for states, _ in told])
    pooled = [vector for _, vector in told if vector is not None]
    if not pooled:
        return context, None
    sizes = conditioning.sizes(config, *batch.video.shape[-2:]).to(context)
    return context, torch.cat([torch.cat(pooled), sizes.expand(len(pooled), -1)], dim=1)


# ------------------------------------------------------------------------------------- SparseCtrl

UNSHOWN = 0.1
"""Share of clips of which SparseCtrl is shown nothing, so that it leaves the model alone then."""


def show(config: Config, batch: Batch, x0_BCTHW: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """What SparseCtrl is shown of clips, and the mask: latents, or drawings, at `keyframes`; zeros elsewhere."""
    video_BCTHW, frames = batch.video, x0_BCTHW.shape[2]
    whole = x0_BCTHW
    if config.sparse == "scribble":
        drawn = [styles.lines((clip.float() + 1) / 2) for clip in video_BCTHW]
        whole = torch.stack(drawn)[:, None].expand(-1, 3, -1, -1, -1).to(video_BCTHW)
    kept_BT = batch.own(torch.stack([keyframes(frames, generator) for _ in range(batch.count)])).to(whole)
    mask = kept_BT[:, None, :, None, None].expand(-1, 1, -1, *whole.shape[-2:])
    return whole * mask, mask


def keyframes(frames: int, generator: Generator) -> Tensor:
    """1 at the frames that are shown, [T]: none for a tenth of clips; else the first, both ends, or up to half."""
    kept = torch.zeros(frames)
    if torch.rand((), generator=generator).item() < UNSHOWN:
        return kept
    kind = int(torch.randint(3, (), generator=generator))
    if kind < 2:
        kept[[0] if kind == 0 else [0, -1]] = 1
        return kept
    count = int(torch.randint(1, max(frames // 2, 1) + 1, (), generator=generator))
    kept[torch.randperm(frames, generator=generator)[:count]] = 1
    return kept
