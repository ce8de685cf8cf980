"""The pocket model as a kind of image model: see `kinema.families.animatediff.kind.Kind`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Generator, Tensor, nn

from kinema.diffusion.schedules import DiscreteBetas, NoiseLevel
from kinema.families.animatediff.config import Config, Motion, Stage
from kinema.families.animatediff.kind import Network, Target
from kinema.families.animatediff.pocket import losses, parts
from kinema.families.animatediff.pocket.presets import POCKET_MOTION
from kinema.families.animatediff.pocket.settings import SETTINGS
from kinema.nn.ldm_unet import set_norm_groups
from kinema.system import Batch, TrainingSettings
from kinema.vae.patches import Patches


class Pocket:
    """Pixels instead of a VAE's latents, a trained text encoder, and an auxiliary scene-reading loss."""

    training_settings: Mapping[Stage, TrainingSettings] = SETTINGS

    def codec(self, config: Config) -> Patches:
        return Patches(config.patch)

    def finish(self, network: Network, config: Config) -> None:
        network.reader = parts.Reader(config)
        parts.initialise(network.unet, network.text_encoder)
        for part in (network.unet, network.sparse):
            if part is not None:
                set_norm_groups(part, config.groups)

    def image_parameters(self, network: Network, stage: Stage) -> Iterator[nn.Parameter]:
        """A style trains the finest layers, which keeps the layout and so the motion module's input.

        The image stage also trains the text encoder.
        """
        prefixes = parts.finest_prefixes(network.unet.config) if stage == "style" else ("",)
        named = network.unet.named_parameters()
        yield from (p for name, p in named if ".motion_modules." not in name and name.startswith(prefixes))
        if stage == "image":
            yield from parts.reader_of(network).parameters()
            yield from network.text_encoder.parameters()

    def motion_preset(self, motion: Motion) -> Config:  # noqa: ARG002
        return POCKET_MOTION

    def sample_levels(
        self, schedule: DiscreteBetas, count: int, generator: Generator, *, on_clips: bool
    ) -> tuple[NoiseLevel, Tensor]:
        return losses.sample_levels(schedule, count, generator, on_clips=on_clips)

    def loss(self, network: Network, batch: Batch, target: Target, predict: Callable[[], Tensor]) -> Tensor:
        return losses.loss(network, batch, target.level, predict)

    def files(self, stage: Stage, tensors: Mapping[str, Tensor]) -> Mapping[str, Mapping[str, Tensor]]:
        """A style file for the slot of that name."""
        if stage != "style":
            return {}
        return {"style": {name: tensor for name, tensor in tensors.items() if ".motion_modules." not in name}}
