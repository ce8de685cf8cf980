"""What `kinema.system.Family` asks of AnimateDiff."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from kinema.canvas import Canvas
from kinema.checkpoints.convert import Layouts
from kinema.diffusion.parameterise import Denoiser
from kinema.diffusion.schedules import NoiseLevel
from kinema.events import Note, OnEvent
from kinema.families.animatediff import conditioning, recipe
from kinema.families.animatediff.conditioning import Condition, Words
from kinema.families.animatediff.config import PRESETS, Config, from_json, to_json
from kinema.families.animatediff.control import pia, pictures, steering
from kinema.families.animatediff.control.ip_adapter import Picture
from kinema.families.animatediff.control.steering import Steering
from kinema.families.animatediff.files import lora, opening
from kinema.families.animatediff.model import AnimateDiff, blocks
from kinema.families.animatediff.motion import amounts
from kinema.families.animatediff.pocket.presets import PRESETS as POCKETS
from kinema.families.animatediff.pocket.presets import taught
from kinema.grid import LatentGrid, Lattice
from kinema.nn.ldm_unet import channels_last
from kinema.schema import BadRequest, Request, Shape
from kinema.spans import Spans, Stop, spans_of
from kinema.system import Checkpoints, Conditions, Defaults, Opened, Process, Sampling, Slots, Training, Tuning
from kinema.vae.kl2d import ImageCodec

_ABSENT = {"vae": "VAE, add one (vae=FILE)", "text": "text encoder, take a checkpoint with one"}


class AnimateDiffSampling(Sampling):
    """How its clips are made."""

    def lattice(self, config: Config) -> Lattice:
        return Lattice(
            LatentGrid(stride=(config.stride, config.stride), channels=config.latent_channels),
            side_multiple=config.multiple,
            min_side=config.multiple,
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
            prompt_spans=True,
        )

    def process(self, config: Config, shape: Shape) -> Process:  # noqa: ARG002
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
                f"frames is {frames}, and this motion module sees {config.longest} at once: give a window (up to that) "
                "to slide over the clip, an overlap to make it block by block, or load it with overrides stretch="
                f"{frames}"
            )
        if in_blocks and (config.controls or config.adapters):
            raise BadRequest(
                f"frames is {frames}, and ControlNets and IP-Adapters steer a clip that is made at once or in windows: "
                f"give a window (up to {config.longest}), not only an overlap"
            )

    def files(self, request: Request) -> tuple[str, ...]:
        return conditioning.files_of(request)

    def encode_prompt(self, system: Opened, request: Request, on_event: OnEvent) -> Words:
        config, model = cast(Config, system.config), cast(AnimateDiff, system.model)
        tokenizer = conditioning.tokenizer_of(config, system.weights.path, offline=system.offline)
        spans = spans_of(request) or Spans((Stop(0, 0, request.prompt),))
        conditioning.say_unknown(tokenizer, system.name, [*spans.texts, request.negative_prompt], on_event)
        skip = int(request.extra.get("clip_skip", 1))

        def encode(text: str) -> tuple[Tensor, Tensor | None]:
            return conditioning.encode_text(model, config, tokenizer, text, skip)

        told = {text: encode(text) for text in spans.texts}
        contexts = conditioning.level_rows([context for context, _ in told.values()], encode("")[0])
        unwanted, pooled_negative = encode(request.negative_prompt)
        pooled = told[spans.texts[0]][1]
        if pooled is not None and not request.negative_prompt.strip():
            # SDXL was trained with zeros, not with the empty prompt.
            unwanted, pooled_negative = torch.zeros_like(unwanted), torch.zeros_like(pooled)
        return Words(spans, dict(zip(told, contexts, strict=True)), pooled, unwanted, pooled_negative)

    def condition(  # noqa: PLR0917
        self, system: Opened, words: Words, request: Request, canvas: Canvas, on_event: OnEvent
    ) -> Conditions:
        config, model = cast(Config, system.config), cast(AnimateDiff, system.model)
        start = canvas.block.start
        wanted = conditioning.over_frames(words.spans, words.contexts, range(start, start + request.shape.frames))
        motion = config.motion != "none" and request.shape.frames > 1
        moving = amounts.moving_of(request, self.lattice(config))

        shown = conditioning.drawn(request, start) if config.sparse == "scribble" else None
        if config.sparse == "rgb" and canvas.block.way == "native" and not canvas.empty:
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
                "positive": branch(wanted, words.pooled, steerings, seen),
                "negative": branch(words.unwanted, words.pooled_unwanted, unpooled, unseen),
            }
        )

    def _levels(self, system: Opened, request: Request, canvas: Canvas) -> NoiseLevel:
        """Those of the steps that are made: an edit leaves out the first ones."""
        return system.levels(request)[canvas.skipped :]

    def _first(self, system: Opened, request: Request, canvas: Canvas, on_event: OnEvent) -> Tensor | None:
        """What PIA is shown: the first frame where it is given whole, beside whatever else is held."""
        if not bool(canvas.mask[:, :, 0].all()):
            on_event(Note("PIA was trained to go on from a picture and is shown none: animate one"))
            return None
        affinity = pia.affinity_of(cast(Config, system.config), request)
        first = system.encode(canvas.video[:, :, :1])[:, :, 0].to(system.device, system.dtype)
        return pia.shown(first, affinity.to(first))

    def join(self, conditions: Sequence[Condition]) -> Condition | None:
        return conditioning.joined(conditions)

    def denoiser(self, system: Opened, condition: Condition, frames: Sequence[int] | None) -> Denoiser:
        model, told = cast(AnimateDiff, system.model), condition.of(frames)
        channels_last(model.unet)
        for controlling in (model.sparse, *model.controls):
            if controlling is not None:
                channels_last(controlling)
        predicted = recipe.predicted(system.config)
        return predicted.denoiser(lambda z, level: recipe.run_unet(model, system.config, z, level, told).to(z.dtype))


class AnimateDiffCheckpoints(Checkpoints):
    """What its files are called."""

    recognise = staticmethod(opening.open_source)
    convert = staticmethod(opening.convert)
    lora_aliases = staticmethod(lora.aliases)

    @property
    def slots(self) -> Slots:
        from kinema.families.animatediff.files.slots import SLOTS

        return SLOTS

    @property
    def layouts(self) -> Layouts:
        from kinema.families.animatediff.files.checkpoint import LAYOUTS

        return LAYOUTS


class AnimateDiffTraining(Training):
    """How it is trained."""

    loss = staticmethod(recipe.loss)
    recipe = staticmethod(recipe.recipe)

    @property
    def tuning(self) -> Tuning:
        from kinema.families.animatediff.training import TRAINING

        return TRAINING


class AnimateDiffFamily:
    """A personalised image model that moves (Guo et al. 2023); with one frame, the image model itself."""

    name = "animatediff"
    sampling = AnimateDiffSampling()
    checkpoints = AnimateDiffCheckpoints()
    training = AnimateDiffTraining()

    @property
    def presets(self) -> Mapping[str, Config]:
        return PRESETS | {"tiny": taught(PRESETS["tiny"])} | POCKETS

    def build(self, config: Config) -> AnimateDiff:
        return AnimateDiff(config)

    blocks = staticmethod(blocks)
    to_json = staticmethod(to_json)
    from_json = staticmethod(from_json)


FAMILY = AnimateDiffFamily()
