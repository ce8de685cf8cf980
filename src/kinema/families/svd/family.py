"""Stable Video Diffusion as a `kinema.system.Family`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from kinema.canvas import Canvas
from kinema.diffusion.guidance import Guidance, classifier_free
from kinema.diffusion.parameterise import Denoiser, V
from kinema.diffusion.schedules import NoiseLevel
from kinema.events import Note, OnEvent
from kinema.families.svd import checkpoint, conditioning, lora, opening, recipe
from kinema.families.svd.conditioning import Condition
from kinema.families.svd.config import PRESETS, Config, from_json, to_json
from kinema.families.svd.decoder import SVDCodec
from kinema.families.svd.kinds import kind_of
from kinema.families.svd.model import SVD, blocks
from kinema.families.svd.pocket.presets import PRESETS as POCKETS
from kinema.grid import LatentGrid, Lattice
from kinema.nn.ldm_unet import channels_last
from kinema.schema import BadRequest, Request
from kinema.system import Checkpoints, Conditions, Defaults, OpenedModel, Process, Sampling, Training, Tuning


class SVDSampling(Sampling):
    """Sampling of SVD models."""

    def lattice(self, config: Config) -> Lattice:
        return Lattice(
            LatentGrid(stride=(config.stride, config.stride), channels=config.latent_channels),
            side_multiple=config.multiple,
            min_side=config.multiple,
            max_frames=config.frames,
        )

    def defaults(self, config: Config) -> Defaults:
        start, end = config.guidance
        return Defaults(
            frames=config.frames,
            height=config.height,
            width=config.width,
            fps=config.fps,
            steps=config.steps,
            sampler="euler",
            spacing="karras",
            guidance=start,
            guidance_end=end,
            takes_prompt=False,
            extra=conditioning.extra_help(config),
        )

    def process(self, config: Config, request: Request) -> Process:  # noqa: ARG002
        return Process(recipe.schedule(config), V)

    def codec(self, config: Config, model: nn.Module) -> SVDCodec:
        vae = cast(SVD, model).vae
        channels_last(vae)
        return SVDCodec(vae, config.latent_scale, config.decode_chunk)

    def honours(self, config: Config, kind: str) -> tuple[str, ...]:
        """A first frame by the model's kind, a prefix by continuing from its last frame, anything else by guidance."""
        if kind == "nothing":
            return ("native",)
        if kind == "first":
            return kind_of(config).first
        native = ("continuation",) if kind == "prefix" and not config.orbit else ()
        return (*native, "replacement", "reconstruction")

    def check(self, config: Config, request: Request) -> None:
        conditioning.check_extra(config, request.extra)
        if config.orbit and request.window is not None:
            raise BadRequest("this svd model generates orbits, which do not support windows; leave out window")
        if config.orbit and request.frames is not None and request.frames > config.frames:
            raise BadRequest(f"frames is {request.frames}; this svd model generates at most {config.frames} views")

    def encode_prompt(self, system: OpenedModel, request: Request, on_event: OnEvent) -> None:
        if request.prompt.strip() or request.negative_prompt.strip():
            on_event(Note(f"{system.name} has no text conditioning and ignores the prompt"))

    def condition(  # noqa: PLR0917
        self,
        system: OpenedModel,
        words: None,  # noqa: ARG002
        request: Request,
        canvas: Canvas,
        on_event: OnEvent,
    ) -> Conditions:
        config, model, shape = system.config, cast(SVD, system.model), request.shape
        image = conditioning.image_of(canvas)
        if image is None:
            on_event(Note(f"{system.name} was given no image, so it generates an unconditional clip"))
            image = torch.zeros(shape.batch, 3, shape.height, shape.width)
        scalars = conditioning.scalars(config, request)
        amount = torch.full((shape.batch,), conditioning.augmentation(config, request))
        noise = conditioning.image_noise(request, shape.height, shape.width)
        image = image.to(system.device, torch.float32)
        anchor = canvas.block.anchor
        clip_image = anchor.to(image) if anchor is not None and request.extra.get("anchor") else None
        channels_last(model.vae)
        positive = conditioning.encode(model, image, noise.to(image), scalars, amount, clip_image)
        negative = positive.null()
        if conditioning.image_of(canvas) is None:
            positive = negative
        return Conditions({"positive": positive, "negative": negative})

    def guidance(self, config: Config, request: Request) -> Guidance:
        """Per-frame guidance scales over the frames of one pass: every block of frames starts at the first scale."""
        scale = conditioning.guidance(config, request)
        return classifier_free(scale, request.guidance_rescale, request.guidance_interval)

    def join(self, conditions: Sequence[Condition]) -> Condition:
        context, image, scalars = zip(
            *((each.context_B1C, each.image_BCTHW, each.scalars_BTV) for each in conditions), strict=True
        )
        return Condition(torch.cat(context), torch.cat(image), torch.cat(scalars))

    def denoiser(self, system: OpenedModel, condition: Condition, frames: Sequence[int] | None) -> Denoiser:
        model, condition = cast(SVD, system.model), condition.of(frames)
        channels_last(model.unet)
        if not system.config.orbit:
            return V.denoiser(lambda z, level: recipe.run_unet(model.unet, z, level, condition))
        # Kinema's orbits begin with the given view; the network was trained on orbits that end with it.
        shifted = Condition(condition.context_B1C, condition.image_BCTHW, condition.scalars_BTV.roll(-1, dims=1))

        def network(z_BCTHW: Tensor, level: NoiseLevel) -> Tensor:
            return recipe.run_unet(model.unet, z_BCTHW.roll(-1, dims=2), level, shifted).roll(1, dims=2)

        return V.denoiser(network)


class SVDCheckpoints(Checkpoints):
    """Weight files of SVD models."""

    layouts = checkpoint.LAYOUTS

    recognise = staticmethod(opening.open_source)

    def convert(self, config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002
        return opening.convert(tensors)

    lora_aliases = staticmethod(lora.aliases)


class SVDTraining(Training):
    """Training of SVD models."""

    loss = staticmethod(recipe.loss)
    settings = staticmethod(recipe.recipe)

    @property
    def tuning(self) -> Tuning:
        from kinema.families.svd.training import TRAINING

        return TRAINING


class StableVideoDiffusion:
    """Image to video in latent space (Blattmann et al. 2023), and orbits by SV3D (Voleti et al. 2024)."""

    name = "svd"
    sampling = SVDSampling()
    checkpoints = SVDCheckpoints()
    training = SVDTraining()

    @property
    def presets(self) -> Mapping[str, Config]:
        return PRESETS | POCKETS

    def build(self, config: Config) -> nn.Module:
        return kind_of(config).build(config)

    blocks = staticmethod(blocks)
    to_json = staticmethod(to_json)
    from_json = staticmethod(from_json)


FAMILY = StableVideoDiffusion()
