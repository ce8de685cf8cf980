"""Sampling, files and training of Open-Sora 2.0: what `kinema.system.Family` asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Generator, Tensor, nn

from kinema.canvas import Canvas
from kinema.checkpoints.convert import Layouts
from kinema.diffusion.guidance import Guidance
from kinema.diffusion.parameterise import Denoiser
from kinema.diffusion.schedules import NoiseLevel, RectifiedFlow
from kinema.events import OnEvent
from kinema.families.opensora import conditioning, layout, options, process, sizes
from kinema.families.opensora.codec import VideoCodec, codec_of
from kinema.families.opensora.conditioning import Condition
from kinema.families.opensora.config import Config
from kinema.families.opensora.files import lora, opening
from kinema.families.opensora.kinds import kind_of
from kinema.families.opensora.model import OpenSora, run
from kinema.grid import Lattice
from kinema.schema import BadRequest, Request
from kinema.system import (
    Batch,
    Checkpoints,
    Conditions,
    Defaults,
    OpenedModel,
    Process,
    Sampling,
    Slots,
    Training,
    TrainingSettings,
)


class OpenSoraSampling(Sampling):
    """How its clips are generated."""

    def lattice(self, config: Config) -> Lattice:
        return layout.lattice(config)

    def defaults(self, config: Config) -> Defaults:
        return Defaults(
            frames=config.frames,
            height=config.height,
            width=config.width,
            fps=config.fps,
            steps=config.steps,
            sampler="euler",
            guidance=config.guidance,
            fits_float16=False,
            sizes=sizes.named(config.multiple),
            extra=options.helped(config),
        )

    def process(self, config: Config, request: Request) -> Process:
        """A flow whose shift grows with the tokens of a frame and with the latent frames, unless one is set."""
        shift, shape = request.extra.get("flow_shift", config.shift), request.shape
        if shift is not None:
            return Process(RectifiedFlow(float(shift)), process.VELOCITY)
        frames = layout.latent_grid(config).latent(shape).frames
        return Process(process.flow(config.tokens(shape.height, shape.width), frames), process.VELOCITY)

    def codec(self, config: Config, model: nn.Module) -> VideoCodec:
        return codec_of(config, cast(OpenSora, model))

    def honours(self, config: Config, kind: str) -> tuple[str, ...]:
        """Whole frames by the transformer's own input where it has one; regions too where it was trained with them,
        else by guidance.
        """
        if kind == "nothing":
            return ("native",)
        trained = kind != "region" or kind_of(config).takes_regions
        own = ("native",) if config.transformer.conditioned and trained else ()
        return (*own, "replacement", "reconstruction")

    def check(self, config: Config, request: Request) -> None:
        if config.absent:
            raise BadRequest(opening.lacking(config))
        options.check(config, request)

    def encode_prompt(
        self, system: OpenedModel, request: Request, on_event: OnEvent
    ) -> Mapping[str, conditioning.Text]:
        return conditioning.encode_prompt(system, request, on_event)

    def condition(  # noqa: PLR0917
        self,
        system: OpenedModel,
        words: Mapping[str, conditioning.Text],
        request: Request,
        canvas: Canvas,
        on_event: OnEvent,  # noqa: ARG002
    ) -> Conditions:
        return conditioning.conditions(system, words, request, canvas)

    def guidance(self, config: Config, request: Request) -> Guidance:
        return conditioning.guidance(config, request)

    def join(self, conditions: Sequence[Condition]) -> Condition | None:
        return conditioning.join(conditions)

    def denoiser(self, system: OpenedModel, condition: Condition, frames: Sequence[int] | None) -> Denoiser:
        transformer, here = cast(OpenSora, system.model).transformer, condition.of(frames)

        def network(z_BCTHW: Tensor, level: NoiseLevel) -> Tensor:
            return run(transformer, z_BCTHW, level, here.text_BMF, here.pooled_BF, here.given_BCThw)

        return process.VELOCITY.denoiser(network)


class OpenSoraCheckpoints(Checkpoints):
    """The files of Open-Sora: which are recognised, converted and required."""

    recognise = staticmethod(opening.open_source)
    convert = staticmethod(opening.convert)
    lora_aliases = staticmethod(lora.aliases)
    check_ready = staticmethod(conditioning.check_encoders)

    @property
    def slots(self) -> Slots:
        from kinema.families.opensora.files.slots import SLOTS

        return SLOTS

    @property
    def layouts(self) -> Layouts:
        from kinema.families.opensora.files.checkpoint import LAYOUTS

        return LAYOUTS


class OpenSoraTraining(Training):
    """How it is trained."""

    def settings(self, config: Config) -> TrainingSettings:
        return kind_of(config).settings(config)

    def loss(self, model: nn.Module, config: Config, batch: Batch, generator: Generator) -> Tensor:
        return kind_of(config).loss(model, config, batch, generator)
