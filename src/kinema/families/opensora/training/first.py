"""How Open-Sora 1.0 to 1.3 are trained: IDDPM (1.0, 1.1) or a flow (1.2, 1.3), with frames that are given.

1.1 and 1.2 show given frames clean, at time 0, and count generated frames alone. 1.3 noises and counts every frame, and
has the given latents as an input. Only the transformer learns (and the words of a small model); the codec is frozen.
Original: scripts/train.py and opensora/schedulers (1.0 d7518da, 1.1 c37e6d6, 1.2 bde3c42, 1.3 2ca632a).

Letters: B clips, C latent channels, T h w latent frames, rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Generator, Tensor, nn

from kinema.diffusion.schedules import NoiseLevel, RectifiedFlow
from kinema.families.opensora.first_line import process
from kinema.families.opensora.stdit.config import IMAGE_FPS
from kinema.families.opensora.stdit.inputs import About, Given
from kinema.families.opensora.training import iddpm, masks, text
from kinema.families.opensora.training.stages import TEXT_DROP, Stage, stage_of
from kinema.families.opensora.v1.config import Config
from kinema.families.opensora.v1.model import OpenSora1, codec_of
from kinema.schema import BadRequest
from kinema.system import Batch, TrainingSettings

LATENTS = "latents"
NOISE = 0.1, 0.3
"""Share of noise in the pixels of noisy given frames (1.3)."""


def settings(config: Config) -> TrainingSettings:
    """The stage's rate, warm-up and average; a batch that fits a small machine. The loss drops text by itself."""
    stage = _stage(config)
    return TrainingSettings(
        steps=10_000,
        batch=4,
        learning_rate=stage.learning_rate,
        warmup=stage.warmup,
        ema=stage.ema,
        text_drop=0.0,
        lora={"steps": 5000, "learning_rate": 1e-4},
    )


def _stage(config: Config) -> Stage:
    stage = stage_of(config.version, config.stage)
    if stage is None:
        raise BadRequest(f"Open-Sora {config.version} has no training stage {config.stage!r}")
    return stage


@dataclass(frozen=True)
class Drawn:
    """What is drawn for each clip besides its noise."""

    given_BT: Tensor
    noisy_B: Tensor
    text_dropped_B: Tensor
    given_dropped_B: Tensor
    """Whether the given latents are hidden (1.3); their mask is not."""


def drawn(config: Config, batch: Batch, frames: int, generator: Generator) -> Drawn:
    """Draw masks and drops for the whole step; returns those of this batch."""
    stage, count = _stage(config), batch.count
    given_BT, noisy_B = masks.drawn(stage.masks, count, frames, generator)
    text_B = torch.rand(count, generator=generator) < TEXT_DROP
    kinds = masks.kinds(stage.drops or {"keep": 1.0}, count, generator)
    if config.stdit.takes_given:
        any_B = given_BT.any(1)
        text_B = torch.where(any_B, torch.tensor([kind in ("cond", "null") for kind in kinds]), text_B)
        hidden_B = any_B & torch.tensor([kind in ("text", "null") for kind in kinds])
    else:
        hidden_B = torch.zeros(count, dtype=torch.bool)
    return Drawn(
        batch.own(given_BT), batch.own(noisy_B), batch.own(text_B) & batch.drops, batch.own(hidden_B) & batch.drops
    )


def loss(model: nn.Module, config: Config, batch: Batch, generator: Generator) -> Tensor:
    """The loss of each clip, [B]."""
    network = cast(OpenSora1, model)
    x0 = latents(network, batch)
    told = drawn(config, batch, x0.shape[2], generator)
    states, tokens = text.of_first(network, config, batch, told.text_dropped_B)
    eps = batch.own(torch.randn(batch.count, *x0.shape[1:], generator=generator)).to(x0)
    inputs = {"about": about(config, batch)}
    generated_BT = ~told.given_BT.to(x0.device)
    counted = generated_BT[:, None, :, None, None]
    if config.stdit.takes_given:
        given_BT = told.given_BT.to(x0.device)
        inputs["given"] = Given(_shown(network, batch, x0, told, generator), given_BT)
        counted = torch.ones_like(counted)
    elif config.stdit.holds_frames:
        inputs["generated_BT"] = generated_BT

    def network_at(z: Tensor, time_B: Tensor) -> Tensor:
        dtype = network.transformer.x_embedder.proj.weight.dtype
        return network.transformer(z.to(dtype), time_B.to(z.device), states, tokens, **inputs).float()

    held_BT = generated_BT.logical_not() if not config.stdit.takes_given else torch.zeros_like(generated_BT)
    if config.is_flow:
        level = _level(config, batch, generator)
        z = _per_frame(level, held_BT, NoiseLevel(torch.ones(1), torch.zeros(1))).add_noise(x0, eps)
        output = network_at(z, process.TIMESTEPS * level.sigma.float())[:, : x0.shape[1]]
        return process.TOWARDS_DATA.loss(output, x0, eps, level, mask=counted)
    step_B = _step(batch, generator)
    # As published, a given frame has the little noise of the first timestep.
    z = _per_frame(iddpm.level(step_B), held_BT, iddpm.level(torch.zeros(1, dtype=torch.long))).add_noise(x0, eps)
    return iddpm.loss(network_at(z, step_B.float()), x0, z, eps, step_B, counted)


@torch.no_grad()
def latents(network: OpenSora1, batch: Batch) -> Tensor:
    """Modes of the posterior, so that precomputed latents are the same; of the whole clip."""
    return codec_of(network).encode(batch.video) if batch.encoded is None else batch.encoded[LATENTS]


@torch.no_grad()
def encode(network: OpenSora1, video_B3THW: Tensor) -> dict[str, Tensor]:
    """What is precomputed of clips; every mask can be used with it."""
    return {LATENTS: codec_of(network).encode(video_B3THW)}


def about(config: Config, batch: Batch) -> About:
    """Frame rate and published size; the config's rate where a clip's is unknown."""
    frames, height, width = batch.mask.shape[2:]
    fps_B = torch.full((len(batch.captions),), config.fps) if batch.fps is None else batch.fps.float().cpu()
    fps_B = fps_B.where(fps_B.isfinite(), torch.tensor(config.fps))
    if frames == 1:
        fps_B = torch.full_like(fps_B, IMAGE_FPS)
    return About(fps_B.to(batch.mask.device), *config.published(height, width))


def _shown(network: OpenSora1, batch: Batch, x0: Tensor, told: Drawn, generator: Generator) -> Tensor:
    """1.3's input: given latents, zero where nothing is given or where they are hidden.

    Those of noisy kinds are encoded with noise in their pixels; precomputed ones have none, as in the original.
    """
    seeds = batch.own(torch.randint(2**31, (batch.count,), generator=generator)).tolist()
    shown = x0.clone()
    for clip, (seed, noisy) in enumerate(zip(seeds, told.noisy_B.tolist(), strict=True)):
        if noisy and batch.encoded is None:
            own = torch.Generator().manual_seed(seed)
            least, most = NOISE
            share = least + (most - least) * float(torch.rand((), generator=own))
            video = batch.video[clip : clip + 1]
            mixed = share * torch.randn(video.shape, generator=own).to(video) + (1 - share) * video
            with torch.no_grad():
                shown[clip : clip + 1] = codec_of(network).encode(mixed)
    seen_BT = told.given_BT & ~told.given_dropped_B[:, None]
    return shown * seen_BT[:, None, :, None, None].to(x0)


def _level(config: Config, batch: Batch, generator: Generator) -> NoiseLevel:
    """Logit-normal times, shifted by the size and length of the clips; or `Batch.time` as it is."""
    time_B = batch.own(torch.randn(batch.count, generator=generator)).sigmoid()
    if batch.time is not None:
        return RectifiedFlow(1.0).level(torch.full_like(time_B, batch.time))
    frames, *size = batch.mask.shape[2:]
    height, width = config.published(*size)
    shifted = process.flow_v1_2 if config.version == "1.2" else process.flow_v1_3
    return shifted(height, width, frames).level(time_B)


def _step(batch: Batch, generator: Generator) -> Tensor:
    step_B = batch.own(torch.randint(process.TIMESTEPS, (batch.count,), generator=generator))
    return step_B if batch.time is None else torch.full_like(step_B, int(batch.time * process.TIMESTEPS))


def _per_frame(level: NoiseLevel, held_BT: Tensor, clean: NoiseLevel) -> NoiseLevel:
    """The level of each frame, [B, T]: ``clean`` where it is held."""

    def at(now_B: Tensor, held_1: Tensor) -> Tensor:
        now_B1 = now_B[:, None].to(held_BT.device)
        return torch.where(held_BT, held_1.to(now_B1), now_B1)

    return NoiseLevel(at(level.alpha, clean.alpha), at(level.sigma, clean.sigma))
