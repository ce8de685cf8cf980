"""Training objective and settings (Guo et al. 2023, §4; 2023b, §3): each part trains alone, all others frozen.

The motion module trains on clips, the image model on single frames of them, and SparseCtrl on clips with some
conditioning frames. The authors released settings for v1's motion module only: 16 frames of 256 pixels, every fourth
frame, AdamW at 1e-4, text dropped for 10 % of clips; 1e-5 for the image model.

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
from kinema.diffusion.parameterise import EPS, X0, Parameterisation, V
from kinema.diffusion.schedules import DiscreteBetas, NoiseLevel
from kinema.families.animatediff import conditioning
from kinema.families.animatediff.conditioning import Condition
from kinema.families.animatediff.config import Betas, Config
from kinema.families.animatediff.control.steering import steer
from kinema.families.animatediff.kind import Target
from kinema.families.animatediff.kinds import kind_of
from kinema.families.animatediff.model import AnimateDiff
from kinema.nn.ldm_unet import channels_last
from kinema.system import Batch, TrainingSettings
from kinema.vae.kl2d import ImageCodec

SETTINGS = TrainingSettings(
    steps=500_000,
    batch=4,
    learning_rate=1e-4,
    weight_decay=0.01,
    ema=0.9999,
    text_drop=0.1,
    frameskip=4,
    # The authors published none for LoRAs; MotionLoRAs commonly train for a few thousand steps at 1e-4.
    lora={"steps": 5000, "learning_rate": 1e-4},
)
IMAGE_LEARNING_RATE = 1e-5
TINY_SETTINGS = replace(
    SETTINGS, steps=200, batch=4, warmup=10, learning_rate=1e-3, ema=0.99, frameskip=1, lora={"learning_rate": 1e-4}
)


def settings_of(config: Config) -> TrainingSettings:
    """Training settings of the config's training stage; smaller ones for tiny networks."""
    if config.trains in (special := kind_of(config).training_settings):
        return special[config.trains]
    if config.channels[0] < 64:
        return TINY_SETTINGS
    on_clips = config.trains in ("motion", "sparsectrl")
    return SETTINGS if on_clips else replace(SETTINGS, learning_rate=IMAGE_LEARNING_RATE)


# ------------------------------------------------------------------------------------ the network


def schedule_of(config: Config) -> DiscreteBetas:
    """Noise schedule of clips."""
    return _betas(config, config.betas, config.trained_betas)


def image_schedule_of(config: Config) -> DiscreteBetas:
    """Noise schedule of single frames."""
    return _betas(config, config.image_betas, config.image_trained_betas)


def _betas(config: Config, betas: Betas, trained: tuple[float, ...]) -> DiscreteBetas:
    return DiscreteBetas(
        *betas, count=config.timesteps, trained=trained, zero_snr=config.zero_snr, offset=config.steps_offset
    )


def parameterisation_of(config: Config) -> Parameterisation:
    """What the U-Net predicts."""
    return {"eps": EPS, "x0": X0, "v": V}[config.predicts]


def run_unet(model: AnimateDiff, config: Config, z_BCTHW: Tensor, level: NoiseLevel, condition: Condition) -> Tensor:
    """Return the U-Net's output; a single frame uses the image model's own noise schedule."""
    schedule = schedule_of(config) if condition.motion else image_schedule_of(config)
    dtype, batch = model.unet.conv_in.weight.dtype, len(z_BCTHW)
    context = condition.context_BKLC.to(dtype)
    if context.shape[1] > 1:  # one row per frame of each clip
        context = context.expand(batch, -1, -1, -1)
    context = context.flatten(0, 1)
    step = processor.to_device(schedule.timestep(level.log_snr), z_BCTHW.device)
    added, sparse = condition.added_BV, condition.sparse
    control = None
    if sparse is not None and model.sparse is not None:
        windows = condition.motion_control.windows
        control = model.sparse(sparse.frames_BCTHW, sparse.mask_B1THW, step, context, sparse.scale_T, windows)
    inputs = (z_BCTHW, step, context, None if added is None else added.expand(batch, -1))
    if (residuals := steer(model, condition.steerings, inputs, level)) is not None:
        control = residuals if control is None else control + residuals
    return model.unet(
        z_BCTHW.to(dtype),
        step,
        context,
        inputs[-1],
        motion=condition.motion,
        motion_control=condition.motion_control,
        control=control,
        image_prompts=[prompt.of_batch(batch) for prompt in condition.image_prompts],
        first_BCTHW=condition.first_BCTHW,
    )


# --------------------------------------------------------------------------------------- the loss


def loss(model: nn.Module, config: Config, batch: Batch, generator: Generator) -> Tensor:
    """Loss of the prediction at a noise level sampled for each clip, [B]."""
    network, on_clips = cast(AnimateDiff, model), config.trains in ("motion", "sparsectrl")
    channels_last(network.unet)
    if not on_clips:
        batch = single_frames(batch, generator)
    x0 = encode(network, config, batch.video) if batch.encoded is None else batch.encoded["latents"].to(batch.video)
    context, added = _captions(network, config, batch)
    schedule = schedule_of(config) if on_clips else image_schedule_of(config)
    level, step = kind_of(config).sample_levels(schedule, batch.count, generator, on_clips=on_clips)
    level, step = batch.own(level), batch.own(step)
    eps = batch.own(torch.randn(batch.count, *x0.shape[1:], generator=generator)).to(x0)
    z, step = level.add_noise(x0, eps), processor.to_device(step, x0.device)
    control = None
    if config.trains == "sparsectrl" and network.sparse is not None:
        channels_last(network.sparse)
        frames, mask = sparse_input(config, batch, x0, generator)
        control = network.sparse(frames, mask, step, context)
    # One row of context per clip, shared by its frames.
    motion = on_clips and config.motion != "none"
    predict = partial(network.unet, z, step, context, added, motion=motion, control=control)
    return kind_of(config).loss(network, batch, Target(parameterisation_of(config), x0, eps, level), predict)


def single_frames(batch: Batch, generator: Generator) -> Batch:
    """One random frame of each clip, without the scene graph, which describes the whole clip."""
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
    """Encode clips to scaled latents, B×C×T×H×W."""
    return ImageCodec(network.vae, config.latent_scale).encode(video_BCTHW)


def _captions(network: AnimateDiff, config: Config, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """The first token row of each caption, B×L×C, and SDXL's added vector."""
    tokenizer = conditioning.tokenizer_of(config, batch.weights)
    if config.words:
        ids = torch.cat([rows(tokenizer, text, config.text[0].length)[:1] for text in batch.captions])
        return network.text_encoder(ids.to(batch.video.device), tokenizer.end)[0], None
    with torch.no_grad():
        encoded = [conditioning.encode_text(network, config, tokenizer, text) for text in batch.captions]
    context = torch.cat([states[:, : config.text[0].length] for states, _ in encoded])
    pooled = [vector for _, vector in encoded if vector is not None]
    if not pooled:
        return context, None
    sizes = conditioning.sizes(config, *batch.video.shape[-2:]).to(context)
    return context, torch.cat([torch.cat(pooled), sizes.expand(len(pooled), -1)], dim=1)


# ------------------------------------------------------------------------------------- SparseCtrl

UNCONDITIONED = 0.1
"""Share of clips without conditioning frames, so that SparseCtrl learns to add nothing then."""


def sparse_input(config: Config, batch: Batch, x0_BCTHW: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """SparseCtrl's conditioning frames and mask: latents or scribbles at `keyframes`, zeros elsewhere."""
    video_BCTHW, frames = batch.video, x0_BCTHW.shape[2]
    whole = x0_BCTHW
    if config.sparse == "scribble":
        scribbles = [styles.lines((clip.float() + 1) / 2) for clip in video_BCTHW]
        whole = torch.stack(scribbles)[:, None].expand(-1, 3, -1, -1, -1).to(video_BCTHW)
    kept_BT = batch.own(torch.stack([keyframes(frames, generator) for _ in range(batch.count)])).to(whole)
    mask = kept_BT[:, None, :, None, None].expand(-1, 1, -1, *whole.shape[-2:])
    return whole * mask, mask


def keyframes(frames: int, generator: Generator) -> Tensor:
    """1 at conditioning frames, [T]: none for 10 % of clips; otherwise the first, both ends, or up to half of them."""
    kept = torch.zeros(frames)
    if torch.rand((), generator=generator).item() < UNCONDITIONED:
        return kept
    kind = int(torch.randint(3, (), generator=generator))
    if kind < 2:
        kept[[0] if kind == 0 else [0, -1]] = 1
        return kept
    count = int(torch.randint(1, max(frames // 2, 1) + 1, (), generator=generator))
    kept[torch.randperm(frames, generator=generator)[:count]] = 1
    return kept
