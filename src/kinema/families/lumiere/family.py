"""Lumiere as a `kinema.system.Family`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from kinema import processor, registry
from kinema.canvas import Canvas
from kinema.diffusion.parameterise import Denoiser
from kinema.diffusion.schedules import NoiseLevel
from kinema.events import OnEvent
from kinema.families.lumiere import conditioning, image_files, layout, recipe
from kinema.families.lumiere.conditioning import Condition
from kinema.families.lumiere.config import Config, from_json, presets, to_json
from kinema.families.lumiere.model import Lumiere, blocks
from kinema.grid import Lattice
from kinema.nn.ldm_unet import channels_last
from kinema.schema import BadRequest, Request
from kinema.system import Checkpoints, Conditions, Defaults, OpenedModel, Process, Sampling, Slots, Training, Tuning
from kinema.vae.kl2d import ImageCodec


class LumiereSampling(Sampling):
    """Sampling of clips."""

    def lattice(self, config: Config) -> Lattice:
        return layout.lattice(config)

    def defaults(self, config: Config) -> Defaults:
        return Defaults(
            frames=config.frames,
            height=config.height,
            width=config.width,
            fps=config.fps,
            steps=config.steps,
            sampler=config.sampler,
            spacing=config.spacing,
            guidance=config.guidance,
            enlarges=config.enlarges > 1,
            takes_small=config.enlarges > 1,
            windows=None if config.overlap is None else (config.longest, config.overlap),
            extra=conditioning.OPTIONS,
        )

    def process(self, config: Config, request: Request) -> Process:  # noqa: ARG002
        return Process(recipe.schedule_of(config), recipe.parameterisation_of(config))

    def codec(self, config: Config, model: nn.Module) -> ImageCodec:
        vae = cast(Lumiere, model).vae
        channels_last(vae)
        return ImageCodec(vae, config.latent_scale)

    def honours(self, config: Config, kind: str) -> tuple[str, ...]:
        """Everything by the network's own input where it has one, else by guidance."""
        own = ("native",) if config.conditioned or kind == "nothing" else ()
        return own if kind == "nothing" else (*own, "replacement", "reconstruction")

    def check(self, config: Config, request: Request) -> None:
        conditioning.check_size(config, request)
        for name in request.extra:
            if name not in conditioning.OPTIONS:
                raise BadRequest(registry.unknown_name("option of lumiere", name, conditioning.OPTIONS))
        conditioning.check_style(config, request)

    def files(self, request: Request) -> tuple[str, ...]:
        style = request.extra.get("style")
        return (str(style),) if style and registry.add_on_file(style) == style else ()  # an included one has no hash

    def encode_prompt(self, system: OpenedModel, request: Request, on_event: OnEvent) -> Mapping[str, Tensor]:
        return conditioning.encode_prompt(system, request, on_event)

    def condition(  # noqa: PLR0917
        self,
        system: OpenedModel,
        words: Mapping[str, Tensor],
        request: Request,
        canvas: Canvas,
        on_event: OnEvent,  # noqa: ARG002
    ) -> Conditions:
        return conditioning.conditions(system, words, request, canvas)

    def join(self, conditions: Sequence[Condition]) -> Condition | None:
        return conditioning.join(conditions)

    def denoiser(self, system: OpenedModel, condition: Condition, frames: Sequence[int] | None) -> Denoiser:
        config, here = cast(Config, system.config), condition.of(frames)
        unet = here.unet or cast(Lumiere, system.model).unet
        channels_last(unet)
        schedule = recipe.schedule_of(config)

        def predict(z_BCTHW: Tensor, level: NoiseLevel) -> Tensor:
            step = processor.to_device(schedule.timestep(level.log_snr), z_BCTHW.device)
            return unet(z_BCTHW.to(system.dtype), step, here.context_BLC, here.given_BCThw, here.small_BCThw).to(
                z_BCTHW.dtype
            )

        return recipe.parameterisation_of(config).denoiser(predict)


class LumiereCheckpoints(Checkpoints):
    """Weight files: Kinema's own, with image models and temporal layers as add-ons. No weights were published."""

    convert = staticmethod(image_files.native)
    check_ready = staticmethod(conditioning.check_files)

    @property
    def slots(self) -> Slots:
        from kinema.families.lumiere.slots import SLOTS

        return SLOTS


class LumiereTraining(Training):
    """Training objective and settings."""

    loss = staticmethod(recipe.loss)
    settings = staticmethod(recipe.settings_of)

    @property
    def tuning(self) -> Tuning:
        from kinema.families.lumiere.training import TRAINING

        return TRAINING


class LumiereFamily:
    """Lumiere (Bar-Tal et al. 2024): the whole clip in one pass, by an image model inflated over time."""

    name = "lumiere"
    sampling = LumiereSampling()
    checkpoints = LumiereCheckpoints()
    training = LumiereTraining()

    @property
    def presets(self) -> Mapping[str, Config]:
        return presets()

    def build(self, config: Config) -> Lumiere:
        return Lumiere(config)

    blocks = staticmethod(blocks)
    to_json = staticmethod(to_json)
    from_json = staticmethod(from_json)


FAMILY = LumiereFamily()
