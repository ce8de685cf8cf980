"""In what image models differ beside their sizes, looked up by what makes their latents (`Config.codec`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from kinema.diffusion.schedules import DiscreteBetas, NoiseLevel
from kinema.families.animatediff.config import PRESETS, Config, Motion, Stage
from kinema.families.animatediff.kind import Aim, Kind, Network
from kinema.families.animatediff.pocket.kind import Pocket
from kinema.system import Batch, TrainingSettings
from kinema.vae.kl2d import Autoencoder


class Latent:
    """Stable Diffusion's: a VAE of its own, and the training that the authors describe."""

    recipes: Mapping[Stage, TrainingSettings] = {}

    def codec(self, config: Config) -> Autoencoder:
        return Autoencoder(config.vae_channels, config.vae_layers, config.latent_channels)

    def complete(self, network: Network, config: Config) -> None:
        pass

    def image_parameters(self, network: Network, stage: Stage) -> Iterator[nn.Parameter]:  # noqa: ARG002
        return (p for name, p in network.unet.named_parameters() if ".motion_modules." not in name)

    def motion_preset(self, motion: Motion) -> Config:
        return PRESETS[motion]

    def draw(
        self,
        schedule: DiscreteBetas,
        count: int,
        generator: Generator,
        *,
        moves: bool,  # noqa: ARG002
    ) -> tuple[NoiseLevel, Tensor]:
        """Whole steps, evenly."""
        step = torch.randint(schedule.count, (count,), generator=generator)
        return schedule.level(step.double() / (schedule.count - 1)), step

    def error(self, network: Network, batch: Batch, aim: Aim, predict: Callable[[], Tensor]) -> Tensor:  # noqa: ARG002
        return aim.parameterisation.loss(predict().float(), aim.x0, aim.eps, aim.level)

    def files(self, stage: Stage, tensors: Mapping[str, Tensor]) -> Mapping[str, Mapping[str, Tensor]]:  # noqa: ARG002
        return {}


KINDS: dict[Literal["vae", "pixels"], Kind] = {"vae": Latent(), "pixels": Pocket()}


def kind_of(config: Config) -> Kind:
    return KINDS[config.codec]
