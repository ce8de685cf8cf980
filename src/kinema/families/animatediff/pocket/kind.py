"""The pocket as a kind of image model: see `kinema.families.animatediff.kind.Kind`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Generator, Tensor, nn

from kinema.diffusion.schedules import DiscreteBetas, NoiseLevel
from kinema.families.animatediff.config import Config, Motion, Stage
from kinema.families.animatediff.kind import Aim, Network
from kinema.families.animatediff.pocket import losses, parts
from kinema.families.animatediff.pocket.presets import POCKET_MOTION
from kinema.families.animatediff.pocket.recipe import RECIPES
from kinema.system import Batch, TrainingSettings


class Pocket:
    """Pixels in place of a VAE's latents, a text encoder that is trained too, and a reading beside the drawing."""

    recipes: Mapping[Stage, TrainingSettings] = RECIPES

    def codec(self, config: Config) -> parts.Patches:
        return parts.Patches(config.patch)

    def complete(self, network: Network, config: Config) -> None:
        network.reader = parts.Reader(config)
        parts.begin(network.unet, network.text_encoder)
        parts.few_groups([network.unet, *([network.sparse] if network.sparse else [])], config.groups)

    def image_parameters(self, network: Network, stage: Stage) -> Iterator[nn.Parameter]:
        """A style is in the finest layers: what stands where, and so the motion module's ground, stays.

        Words are learnt with the pictures.
        """
        inside = parts.fine(network.unet.config) if stage == "style" else ("",)
        named = network.unet.named_parameters()
        yield from (p for name, p in named if ".motion_modules." not in name and name.startswith(inside))
        if stage == "image":
            yield from parts.reader_of(network).parameters()
            yield from network.text_encoder.parameters()

    def motion_preset(self, motion: Motion) -> Config:  # noqa: ARG002
        return POCKET_MOTION

    def draw(
        self, schedule: DiscreteBetas, count: int, generator: Generator, *, moves: bool
    ) -> tuple[NoiseLevel, Tensor]:
        return losses.draw(schedule, count, generator, moves=moves)

    def error(self, network: Network, batch: Batch, aim: Aim, predict: Callable[[], Tensor]) -> Tensor:
        return losses.error(network, batch, aim.level, predict)

    def files(self, stage: Stage, tensors: Mapping[str, Tensor]) -> Mapping[str, Mapping[str, Tensor]]:
        """A style is a file for the slot of that name."""
        if stage != "style":
            return {}
        return {"style": {name: tensor for name, tensor in tensors.items() if ".motion_modules." not in name}}
