"""What `kinema.system.Family` asks of AnimateDiff."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from kinema.checkpoints.source import Source
from kinema.diffusion.parameterise import Denoiser
from kinema.diffusion.schedules import Level, last_levels
from kinema.families.animatediff import conditioning, recipe
from kinema.families.animatediff.conditioning import Condition
from kinema.families.animatediff.config import PRESETS, Config, from_json, to_json
from kinema.families.animatediff.control import pia, pictures, steering
from kinema.families.animatediff.control.ip_adapter import Picture
from kinema.families.animatediff.control.steering import Steering
from kinema.families.animatediff.files import lora, opening
from kinema.families.animatediff.model import AnimateDiff, blocks
from kinema.families.animatediff.motion import amounts
from kinema.families.animatediff.pocket.presets import PRESETS as POCKETS
from kinema.families.animatediff.pocket.presets import taught
from kinema.nn.ldm_unet import channels_last
from kinema.schema import BadRequest, Canvas, Lattice, Note, OnEvent, Request
from kinema.system import Batch, Conditions, Defaults, Found, Process, Recipe, System
from kinema.vae.kl2d import ImageCodec

_ABSENT = {"vae": "VAE, add one (vae=FILE)", "text": "text encoder, take a checkpoint with one"}


class Sampling:
    """How its clips are made."""

    def lattice(self, config: Config) -> Lattice:
        return Lattice(
            side_multiple=config.multiple,
            min_side=config.multiple,
            stride=(config.stride, config.stride),
            channels=config.latent_channels,
            max_frames=config.longest,
        )

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
            attention_windows=config.motion != "none",
        )

    def process(self, config: Config) -> Process:
        return Process(recipe.schedule_of(config), recipe.predicted(config))

    def codec(self, config: Config, model: nn.Module) -> ImageCodec:
        vae = cast(AnimateDiff, model).vae
        channels_last(vae)
        return ImageCodec(vae, config.latent_scale, wide=bool(config.size_embedding))

    def honours(self, config: Config, kind: str) -> tuple[str, ...]:
        """Whole frames natively where SparseCtrl is shown them, the first by PIA; all else by guidance, in latents."""
        if kind == "nothing":
            return ("native",)
        held = ("replacement", "reconstruction")
        native = (config.sparse == "rgb" and kind != "region") or (config.motion == "pia" and kind == "first")
        return ("native", *held) if native else held

    def check(self, config: Config, request: Request) -> None:
        if config.absent:
            raise BadRequest(f"this image model's file has no {_ABSENT[config.absent[0]]}")
        conditioning.check_extra(config, request)
        frames = request.frames or 1
        if config.motion == "none" and frames > 1:
            raise BadRequest(
                f"frames is {frames}; this is an image model, which makes one: "
                "add a motion module (motion=FILE) to move it"
            )
        in_blocks = amounts.in_blocks(request, config.longest)
        if in_blocks and request.overlap is None:
            raise BadRequest(
                f"frames is {frames}, and this motion module sees {config.longest} at once: give a window (such as 16) "
                "to slide over the clip, an overlap to make it block by block, or load it with overrides stretch="
                f"{frames}"
            )
        if in_blocks and (config.controls or config.adapters):
            raise BadRequest(
                f"frames is {frames}, and ControlNets and IP-Adapters steer a clip that is made at once or in windows: "
                "give a window (such as 16), not only an overlap"
            )

    def files(self, request: Request) -> tuple[str, ...]:
        return conditioning.files_of(request)

    def condition(self, system: System, request: Request, canvas: Canvas, on_event: OnEvent) -> Conditions:
        config, model = cast(Config, system.config), cast(AnimateDiff, system.model)
        tokenizer = conditioning.tokenizer_of(config, system.weights.path, offline=system.offline)
        stops = conditioning.travel_of(request)
        conditioning.say_unknown(tokenizer, system.name, [*stops.values(), request.negative_prompt], on_event)
        skip = int(request.extra.get("clip_skip", 1))

        def encode(text: str) -> tuple[Tensor, Tensor | None]:
            return conditioning.encode_text(model, config, tokenizer, text, skip)

        told = {frame: encode(text) for frame, text in stops.items()}
        contexts = conditioning.level_rows([context for context, _ in told.values()], encode("")[0])
        wanted = conditioning.travelled(dict(zip(told, contexts, strict=True)), canvas.start, request.shape.frames)
        unwanted, pooled_negative = encode(request.negative_prompt)
        pooled = told[0][1]
        if pooled is not None and not request.negative_prompt.strip():
            # SDXL was trained with zeros, not with the empty prompt.
            unwanted, pooled_negative = torch.zeros_like(unwanted), torch.zeros_like(pooled)
        motion = config.motion != "none" and request.shape.frames > 1
        moving = amounts.moving_of(request, self.lattice(config))

        shown = conditioning.drawn(request, canvas.start) if config.sparse == "scribble" else None
        if config.sparse == "rgb" and request.honour == "native" and not canvas.empty:
            shown = conditioning.frames_shown(request, canvas, system.encode(canvas.video))
        if shown is not None:
            shown = replace(
                shown,
                given_BCTHW=shown.given_BCTHW.to(system.device, system.dtype),
                mask_B1THW=shown.mask_B1THW.to(system.device, system.dtype),
            )

        steerings = steering.steerings(model, config, request, self._levels(system, request, canvas), on_event)
        # What is averaged over the picture is left out of the unwanted branch.
        unpooled = tuple(each for each in steerings if not config.controls[each.index].pooled)
        seen, unseen = pictures.pictures(model, config, request, on_event)
        first = self._first(system, request, canvas, on_event) if motion and config.motion == "pia" else None

        def branch(
            context: Tensor, vector: Tensor | None, steered: tuple[Steering, ...], looks: tuple[Picture, ...]
        ) -> Condition:
            added = None
            if vector is not None:
                told_sizes = conditioning.sizes(config, request.shape.height, request.shape.width)
                added = torch.cat([vector, told_sizes.to(vector)], dim=1)
            return Condition(context[None], added, motion, moving, shown if motion else None, steered, looks, first)

        return Conditions(
            {
                "positive": branch(wanted, pooled, steerings, seen),
                "negative": branch(unwanted, pooled_negative, unpooled, unseen),
            }
        )

    def _levels(self, system: System, request: Request, canvas: Canvas) -> Level:
        """Those of the steps that are made: an edit leaves out the first ones."""
        levels = system.levels(request)
        return levels if canvas.source is None else last_levels(levels, canvas.strength)

    def _first(self, system: System, request: Request, canvas: Canvas, on_event: OnEvent) -> Tensor | None:
        """What PIA is shown: the first frame where it is given whole, beside whatever else is held."""
        if not bool(canvas.mask[:, :, 0].all()):
            on_event(Note("PIA was trained to go on from a picture and is shown none: animate one"))
            return None
        affinity = pia.affinity_of(cast(Config, system.config), request)
        first = system.encode(canvas.video[:, :, :1])[:, :, 0].to(system.device, system.dtype)
        return pia.shown(first, affinity.to(first))

    def guidance(self, config: Config, request: Request) -> None:  # noqa: ARG002
        return None

    def join(self, conditions: Sequence[Condition]) -> Condition | None:
        return conditioning.joined(conditions)

    def denoiser(self, system: System, condition: Condition, frames: Sequence[int] | None) -> Denoiser:
        model, told = cast(AnimateDiff, system.model), condition.of(frames)
        channels_last(model.unet)
        for controlling in (model.sparse, *model.controls):
            if controlling is not None:
                channels_last(controlling)
        predicted = recipe.predicted(system.config)
        return predicted.denoiser(lambda z, level: recipe.run_unet(model, system.config, z, level, told).to(z.dtype))


class Checkpoints:
    """What its files are called."""

    def recognise(self, source: Source) -> Found | None:
        return opening.open_source(source)

    def convert(self, config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return opening.convert(config, tensors)

    def lora_aliases(self, config: Config) -> Mapping[str, str]:
        return lora.aliases(config)


class Training:
    """How it is trained."""

    def recipe(self, config: Config) -> Recipe:
        return recipe.recipe(config)

    def loss(self, model: nn.Module, config: Config, batch: Batch, generator: torch.Generator) -> Tensor:
        return recipe.loss(model, config, batch, generator)


class AnimateDiffFamily:
    """A personalised image model that moves (Guo et al. 2023); with one frame, the image model itself."""

    name = "animatediff"
    sampling = Sampling()
    checkpoints = Checkpoints()
    training = Training()

    @property
    def presets(self) -> Mapping[str, Config]:
        return PRESETS | {"tiny": taught(PRESETS["tiny"])} | POCKETS

    def build(self, config: Config) -> AnimateDiff:
        return AnimateDiff(config)

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        return blocks(model)

    def to_json(self, config: Config) -> dict[str, Any]:
        return to_json(config)

    def from_json(self, told: Mapping[str, Any]) -> Config:
        return from_json(told)


FAMILY = AnimateDiffFamily()
