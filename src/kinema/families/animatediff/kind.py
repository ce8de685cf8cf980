"""What a kind of image model is asked for; `kinema.families.animatediff.kinds` looks one up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Generator, Tensor, nn

from kinema.conditioning.clip_text import ClipText
from kinema.diffusion.parameterise import Parameterisation
from kinema.diffusion.schedules import DiscreteBetas, NoiseLevel
from kinema.families.animatediff.config import Config, Motion, Stage
from kinema.families.animatediff.unet import UNet
from kinema.system import Batch, TrainingSettings


@dataclass(frozen=True, eq=False)
class Aim:
    """What a network in training is to find: the latents x0 (B×C×T×H×W) under the noise eps, at a level each."""

    parameterisation: Parameterisation
    x0: Tensor
    eps: Tensor
    level: NoiseLevel


class Network(Protocol):
    """What a kind sees of the network (`kinema.families.animatediff.model.AnimateDiff`)."""

    unet: UNet
    vae: Any
    text_encoder: ClipText
    reader: Any
    """What reads the U-Net's features while it is trained, of kinds that have one."""

    @property
    def sparse(self) -> nn.Module | None: ...


class Kind(Protocol):
    """One kind of image model."""

    @property
    def recipes(self) -> Mapping[Stage, TrainingSettings]:
        """Figures of the stages that are trained otherwise than the authors train them."""

    def codec(self, config: Config) -> Any:
        """Latents of images and back, as `kinema.vae.kl2d.ImageCodec` asks for them."""

    def complete(self, network: Network, config: Config) -> None:
        """Add what it has besides the networks of a diffusers folder, and let fresh layers begin as it needs them."""

    def image_parameters(self, network: Network, stage: Stage) -> Iterator[nn.Parameter]:
        """What the stages ``image`` and ``style`` train."""

    def motion_preset(self, motion: Motion) -> Config:
        """How a motion module of this kind is sampled in such a model."""

    def draw(
        self, schedule: DiscreteBetas, count: int, generator: Generator, *, moves: bool
    ) -> tuple[NoiseLevel, Tensor]:
        """Levels to train at, of clips (``moves``) or single frames, and the steps they are told as, [B]."""

    def error(self, network: Network, batch: Batch, aim: Aim, predict: Callable[[], Tensor]) -> Tensor:
        """Error of what the U-Net predicts in one forward pass, [B]."""

    def files(self, stage: Stage, tensors: Mapping[str, Tensor]) -> Mapping[str, Mapping[str, Tensor]]:
        """Files of what a stage trained, beside those in the authors' layouts: name to tensors."""
