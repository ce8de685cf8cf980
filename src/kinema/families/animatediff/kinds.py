"""In what image models differ beside their sizes, looked up by what makes their latents (`Config.codec`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Generator, Tensor, nn

from kinema.diffusion.parameterise import Parameterisation
from kinema.diffusion.schedules import DiscreteBetas, Level
from kinema.families.animatediff.config import PRESETS, Config, Motion, Stage
from kinema.families.animatediff.pocket.kind import Pocket
from kinema.families.animatediff.pocket.parts import Patches
from kinema.system import Batch, Recipe
from kinema.vae.kl2d import Autoencoder

if TYPE_CHECKING:
    from kinema.families.animatediff.model import AnimateDiff


@dataclass(frozen=True, eq=False)
class Aim:
    """What a network in training is to find: the latents x0 (B×C×T×H×W) under the noise eps, at a level each."""

    parameterisation: Parameterisation
    x0: Tensor
    eps: Tensor
    level: Level


class Kind(Protocol):
    """One kind of image model."""

    @property
    def recipes(self) -> Mapping[Stage, Recipe]:
        """Figures of the stages that are trained otherwise than the authors train them."""

    def codec(self, config: Config) -> Autoencoder | Patches:
        """Latents of images and back, as `kinema.vae.kl2d.ImageCodec` asks for them."""

    def complete(self, network: AnimateDiff, config: Config) -> None:
        """Add what it has besides the networks of a diffusers folder, and let fresh layers begin as it needs them."""

    def image_parameters(self, network: AnimateDiff, stage: Stage) -> Iterator[nn.Parameter]:
        """What the stages ``image`` and ``style`` train."""

    def motion_preset(self, motion: Motion) -> Config:
        """How a motion module of this kind is sampled in such a model."""

    def draw(self, schedule: DiscreteBetas, count: int, generator: Generator, *, moves: bool) -> tuple[Level, Tensor]:
        """Levels to train at, of clips (``moves``) or single frames, and the steps they are told as, [B]."""

    def error(self, network: AnimateDiff, batch: Batch, aim: Aim, predict: Callable[[], Tensor]) -> Tensor:
        """Error of what the U-Net predicts in one forward pass, [B]."""

    def files(self, stage: Stage, tensors: Mapping[str, Tensor]) -> Mapping[str, Mapping[str, Tensor]]:
        """Files of what a stage trained, beside those in the authors' layouts: name to tensors."""


class Latent:
    """Stable Diffusion's: a VAE of its own, and the training that the authors describe."""

    recipes: Mapping[Stage, Recipe] = {}

    def codec(self, config: Config) -> Autoencoder | Patches:
        return Autoencoder(config.vae_channels, config.vae_layers, config.latent_channels)

    def complete(self, network: AnimateDiff, config: Config) -> None:
        pass

    def image_parameters(self, network: AnimateDiff, stage: Stage) -> Iterator[nn.Parameter]:  # noqa: ARG002
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
    ) -> tuple[Level, Tensor]:
        """Whole steps, evenly."""
        step = torch.randint(schedule.count, (count,), generator=generator)
        return schedule.level(step.double() / (schedule.count - 1)), step

    def error(self, network: AnimateDiff, batch: Batch, aim: Aim, predict: Callable[[], Tensor]) -> Tensor:  # noqa: ARG002
        return aim.parameterisation.loss(predict().float(), aim.x0, aim.eps, aim.level)

    def files(self, stage: Stage, tensors: Mapping[str, Tensor]) -> Mapping[str, Mapping[str, Tensor]]:  # noqa: ARG002
        return {}


KINDS: dict[Literal["vae", "pixels"], Kind] = {"vae": Latent(), "pixels": Pocket()}


def kind_of(config: Config) -> Kind:
    return KINDS[config.codec]
