"""How Open-Sora 1.0 to 1.3 are trained: IDDPM (1.0, 1.1) or a flow (1.2, 1.3), with frames that are given.

1.1 and 1.2 show given frames clean, at time 0, and count generated frames alone. 1.3 noises and counts every frame, and
has the given latents as an input. Only the transformer learns (and the words of a small model); the codec is frozen.
Original: scripts/train.py and opensora/schedulers (1.0 d7518da, 1.1 c37e6d6, 1.2 bde3c42, 1.3 2ca632a).

Letters: B clips, C latent channels, T h w latent frames, rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn

from kinema.diffusion.schedules import NoiseLevel, RectifiedFlow
from kinema.families.opensora.first_line import process
from kinema.families.opensora.stdit.config import IMAGE_FPS
from kinema.families.opensora.stdit.inputs import About, Given
from kinema.families.opensora.stdit.network import STDiT
from kinema.families.opensora.training import iddpm, masks, text
from kinema.families.opensora.training.stages import TEXT_DROP, Stage, stage_of
from kinema.families.opensora.v1 import opening
from kinema.families.opensora.v1.config import Config
from kinema.families.opensora.v1.model import OpenSora1, codec_of
from kinema.schema import BadRequest
from kinema.system import Batch, TrainingSettings

LATENTS = "latents"
NOISE = 0.1, 0.3
"""Share of noise in the pixels of noisy given frames (1.3)."""


def settings(config: Config) -> TrainingSettings:
    """The stage's rate, warm-up and average; a batch that fits a small machine. The loss drops text by itself.

    Raises BadRequest for a model without its codec, and for clips too short for the flow's shift.
    """
    if config.absent:
        raise BadRequest(opening.lacking(config))
    if 1 < config.frames < config.fewest:
        raise BadRequest(
            f"Open-Sora {config.version} is trained on images and on clips of at least {config.fewest} frames, not on "
            f"{config.frames}"
        )
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


@dataclass(frozen=True)
class Inputs:
    """What the network is conditioned on: ``generated_BT`` is None where no frame is held clean."""

    network: STDiT
    states: Tensor
    tokens: Tensor
    about: About
    generated_BT: Tensor | None
    given: Given | None

    def output(self, z: Tensor, time_B: Tensor) -> Tensor:
        dtype = self.network.x_embedder.proj.weight.dtype
        inputs: dict[str, Any] = {"about": self.about, "generated_BT": self.generated_BT, "given": self.given}
        output = self.network(z.to(dtype), time_B.float().to(z.device), self.states, self.tokens, **inputs)
        return output.to(torch.promote_types(z.dtype, torch.float32))

    def frames(self, x0: Tensor) -> Tensor:
        """Which frames are generated, [B, T]."""
        return x0.new_ones(len(x0), x0.shape[2], dtype=torch.bool) if self.generated_BT is None else self.generated_BT


def loss(model: nn.Module, config: Config, batch: Batch, generator: Generator) -> Tensor:
    """The loss of each clip, [B]."""
    network = cast(OpenSora1, model)
    x0 = batch.once(LATENTS, lambda: latents(network, batch))
    inputs = _inputs(network, config, batch, x0, generator)
    eps = batch.own(torch.randn(batch.count, *x0.shape[1:], generator=generator)).to(x0)
    return (_flow_loss if config.is_flow else _iddpm_loss)(inputs, config, batch, (x0, eps), generator)


def _inputs(network: OpenSora1, config: Config, batch: Batch, x0: Tensor, generator: Generator) -> Inputs:
    chosen = drawn(config, batch, x0.shape[2], generator)
    states, tokens = text.of_first(network, config, batch, chosen.text_dropped_B)
    given_BT, given, generated_BT = chosen.given_BT.to(x0.device), None, None
    if config.stdit.takes_given:
        seeds = batch.own(torch.randint(2**31, (batch.count,), generator=generator)).tolist()
        seen = batch.once("shown", lambda: _shown(network, batch, x0, chosen, seeds))
        given = Given(seen, given_BT)
    elif config.stdit.holds_frames:
        generated_BT = ~given_BT
    return Inputs(network.transformer, states, tokens, about(config, batch), generated_BT, given)


Pair = tuple[Tensor, Tensor]
"""x0 and the noise."""


def _flow_loss(inputs: Inputs, config: Config, batch: Batch, pair: Pair, generator: Generator) -> Tensor:
    (x0, eps), level = pair, _level(config, batch, generator)
    generated_BT = inputs.frames(x0)
    z = _per_frame(level, generated_BT, NoiseLevel(torch.ones(1), torch.zeros(1))).add_noise(x0, eps)
    output = inputs.output(z, process.TIMESTEPS * level.sigma)[:, : x0.shape[1]]
    return process.TOWARDS_DATA.loss(output, x0, eps, level, mask=generated_BT[:, None, :, None, None])


def _iddpm_loss(inputs: Inputs, config: Config, batch: Batch, pair: Pair, generator: Generator) -> Tensor:  # noqa: ARG001
    """As published, a given frame has the little noise of the first timestep."""
    (x0, eps), step_B = pair, _step(batch, generator)
    generated_BT = inputs.frames(x0)
    z = _per_frame(iddpm.level(step_B), generated_BT, iddpm.level(torch.zeros(1, dtype=torch.long))).add_noise(x0, eps)
    return iddpm.loss(inputs.output(z, step_B), x0, z, eps, step_B, generated_BT[:, None, :, None, None])


@torch.no_grad()
def latents(network: OpenSora1, batch: Batch) -> Tensor:
    """Modes of the posterior, so that precomputed latents are the same; of the whole clip.

    In float32 under autocast too, since the loss has their precision.
    """
    return codec_of(network).encode(batch.video).to(batch.video) if batch.encoded is None else batch.encoded[LATENTS]


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


def _shown(network: OpenSora1, batch: Batch, x0: Tensor, chosen: Drawn, seeds: Sequence[int]) -> Tensor:
    """1.3's input: given latents, zero where nothing is given or where they are hidden.

    Those of noisy kinds are encoded with noise in their pixels; precomputed ones have none, as in the original.
    """
    shown = x0.clone()
    for clip, (seed, noisy) in enumerate(zip(seeds, chosen.noisy_B.tolist(), strict=True)):
        if noisy and batch.encoded is None:
            own = torch.Generator().manual_seed(seed)
            least, most = NOISE
            share = least + (most - least) * float(torch.rand((), generator=own))
            video = batch.video[clip : clip + 1]
            mixed = share * torch.randn(video.shape, generator=own).to(video) + (1 - share) * video
            with torch.no_grad():
                shown[clip : clip + 1] = codec_of(network).encode(mixed)
    seen_BT = chosen.given_BT & ~chosen.given_dropped_B[:, None]
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


def _per_frame(level: NoiseLevel, generated_BT: Tensor, clean: NoiseLevel) -> NoiseLevel:
    """The level of each frame, [B, T]: ``clean`` where it is given."""

    def at(now_B: Tensor, clean_1: Tensor) -> Tensor:
        now_B1 = now_B[:, None].to(generated_BT.device)
        return torch.where(generated_BT, now_B1, clean_1.to(now_B1))

    return NoiseLevel(at(level.alpha, clean.alpha), at(level.sigma, clean.sigma))
