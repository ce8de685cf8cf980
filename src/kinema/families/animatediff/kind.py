"""Interface of a kind of image model; `kinema.families.animatediff.kinds` looks one up."""

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
class Target:
    """Training target: latents x0 (B×C×T×H×W), noise eps, and one noise level per clip."""

    parameterisation: Parameterisation
    x0: Tensor
    eps: Tensor
    level: NoiseLevel


class Network(Protocol):
    """The attributes of `kinema.families.animatediff.model.AnimateDiff` that a kind uses."""

    unet: UNet
    vae: Any
    text_encoder: ClipText
    reader: Any
    """Auxiliary head on the U-Net's features during training, for kinds that have one."""

    @property
    def sparse(self) -> nn.Module | None: ...


class Kind(Protocol):
    """One kind of image model."""

    @property
    def training_settings(self) -> Mapping[Stage, TrainingSettings]:
        """Settings of the training stages that differ from the authors'."""

    def codec(self, config: Config) -> Any:
        """Image codec with the interface that `kinema.vae.kl2d.ImageCodec` expects."""

    def finish(self, network: Network, config: Config) -> None:
        """Add the kind's own networks and initialise fresh layers."""

    def image_parameters(self, network: Network, stage: Stage) -> Iterator[nn.Parameter]:
        """Parameters that the training stages ``image`` and ``style`` update."""

    def motion_preset(self, motion: Motion) -> Config:
        """Preset with the sampling settings of a motion module."""

    def sample_levels(
        self, schedule: DiscreteBetas, count: int, generator: Generator, *, on_clips: bool
    ) -> tuple[NoiseLevel, Tensor]:
        """Sample training noise levels for clips or single frames; returns them and their timesteps, [B]."""

    def loss(self, network: Network, batch: Batch, target: Target, predict: Callable[[], Tensor]) -> Tensor:
        """Loss of one forward pass of the U-Net, [B]."""

    def files(self, stage: Stage, tensors: Mapping[str, Tensor]) -> Mapping[str, Mapping[str, Tensor]]:
        """Further files of a training stage besides those in the authors' layouts: name to tensors."""
