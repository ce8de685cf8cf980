"""Implementations of `Kind`, looked up by `Config.codec`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from kinema.diffusion.schedules import DiscreteBetas, NoiseLevel
from kinema.families.animatediff.config import PRESETS, Config, Motion, Stage
from kinema.families.animatediff.kind import Kind, Network, Target
from kinema.families.animatediff.pocket.kind import Pocket
from kinema.system import Batch, TrainingSettings
from kinema.vae.kl2d import Autoencoder


class Latent:
    """Latent diffusion: Stable Diffusion's VAE and the authors' training."""

    training_settings: Mapping[Stage, TrainingSettings] = {}

    def codec(self, config: Config) -> Autoencoder:
        return Autoencoder(config.vae_channels, config.vae_layers, config.latent_channels)

    def finish(self, network: Network, config: Config) -> None:
        pass

    def image_parameters(self, network: Network, stage: Stage) -> Iterator[nn.Parameter]:  # noqa: ARG002
        return (p for name, p in network.unet.named_parameters() if ".motion_modules." not in name)

    def motion_preset(self, motion: Motion) -> Config:
        return PRESETS[motion]

    def sample_levels(
        self,
        schedule: DiscreteBetas,
        count: int,
        generator: Generator,
        *,
        on_clips: bool,  # noqa: ARG002
    ) -> tuple[NoiseLevel, Tensor]:
        """Uniform integer steps."""
        step = torch.randint(schedule.count, (count,), generator=generator)
        return schedule.level(step.double() / (schedule.count - 1)), step

    def loss(
        self,
        network: Network,  # noqa: ARG002
        batch: Batch,  # noqa: ARG002
        target: Target,
        predict: Callable[[], Tensor],
    ) -> Tensor:
        return target.parameterisation.loss(predict().float(), target.x0, target.eps, target.level)

    def files(self, stage: Stage, tensors: Mapping[str, Tensor]) -> Mapping[str, Mapping[str, Tensor]]:  # noqa: ARG002
        return {}


KINDS: dict[Literal["vae", "pixels"], Kind] = {"vae": Latent(), "pixels": Pocket()}


def kind_of(config: Config) -> Kind:
    return KINDS[config.codec]
