"""AnimateDiff's implementation of `kinema.system.Family`."""

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
from kinema.families.animatediff import conditioning, prompting, recipe
from kinema.families.animatediff.conditioning import Condition
from kinema.families.animatediff.config import PRESETS, Config, from_json, to_json
from kinema.families.animatediff.control import image_prompts, pia, steering
from kinema.families.animatediff.control.ip_adapter import ImagePrompt
from kinema.families.animatediff.control.steering import Steering
from kinema.families.animatediff.files import lora, opening
from kinema.families.animatediff.model import AnimateDiff, blocks
from kinema.families.animatediff.motion import options
from kinema.families.animatediff.pocket.presets import PRESETS as POCKETS
from kinema.families.animatediff.pocket.presets import with_playroom_words
from kinema.families.animatediff.prompting import EncodedPrompts, PromptEncoder
from kinema.grid import LatentGrid, Lattice
from kinema.nn.ldm_unet import channels_last
from kinema.schema import BadRequest, Request
from kinema.spans import Spans, Stop, spans_of
from kinema.system import Checkpoints, Conditions, Defaults, OpenedModel, Process, Sampling, Slots, Training, Tuning
from kinema.vae.kl2d import ImageCodec

_ABSENT = {"vae": "VAE; give --add vae=FILE", "text": "text encoder; give --add text=FILE"}


class AnimateDiffSampling(Sampling):
    """Sampling of clips."""

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
            karras=config.karras,
            threshold=config.clip,
            guidance=config.guidance,
            attention_windows=config.motion != "none",
            prompts=prompting.prompts_of(config),
            prompt_spans=True,
            extra=conditioning.extra_help(config),
        )

    def process(self, config: Config, request: Request) -> Process:  # noqa: ARG002
        return Process(recipe.schedule_of(config), recipe.parameterisation_of(config))

    def codec(self, config: Config, model: nn.Module) -> ImageCodec:
        vae = cast(AnimateDiff, model).vae
        channels_last(vae)
        return ImageCodec(vae, config.latent_scale, wide=bool(config.size_embedding))

    def honours(self, config: Config, kind: str) -> tuple[str, ...]:
        """Native for whole frames with SparseCtrl and for the first frame with PIA; guidance in latents otherwise."""
        if kind == "nothing":
            return ("native",)
        guided = ("replacement", "reconstruction")
        native = (config.sparse == "rgb" and kind != "region") or (config.motion == "pia" and kind == "first")
        return ("native", *guided) if native else guided

    def check(self, config: Config, request: Request) -> None:
        if config.absent:
            raise BadRequest(f"the image model's file has no {_ABSENT[config.absent[0]]}")
        conditioning.check_extra(config, request)
        frames = request.frames or 1
        if config.motion == "none" and frames > 1:
            raise BadRequest(
                f"frames is {frames}; an image model generates 1: add a motion module (motion=FILE) for clips"
            )
        is_block_wise = options.is_block_wise(request, config.longest)
        if is_block_wise and request.overlap is None:
            raise BadRequest(
                f"frames is {frames}; the motion module handles {config.longest} at a time: give --window (up to "
                f"{config.longest}), or --overlap to generate block by block"
            )
        if is_block_wise and (config.controls or config.adapters):
            raise BadRequest(
                f"frames is {frames}; ControlNets and IP-Adapters do not work block by block: give --window (up to "
                f"{config.longest}), not --overlap alone"
            )

    def files(self, request: Request) -> tuple[str, ...]:
        return conditioning.files_of(request)

    def encode_prompt(self, system: OpenedModel, request: Request, on_event: OnEvent) -> EncodedPrompts:
        config, model = cast(Config, system.config), cast(AnimateDiff, system.model)
        tokenizer = conditioning.tokenizer_of(config, system.weights.path, offline=system.offline)
        spans = spans_of(request) or Spans((Stop(0, 0, request.prompt),))
        encoder = PromptEncoder(model, config, tokenizer, request, system.loras.files)
        texts = [*spans.texts, request.negative_prompt]
        conditioning.note_unknown_words(tokenizer, system.name, encoder.read(texts), on_event)
        for text in texts:
            encoder.note_cut(text, on_event)
        encoded = {text: encoder.encode(text) for text in spans.texts}
        longest, empty = max(each.length for each in encoded.values()), encoder.encode("").contexts[0]
        negative = encoder.encode(request.negative_prompt)
        if config.pooled and not request.negative_prompt.strip():
            negative = negative.zeros()  # SDXL was trained with zeros for the empty prompt
        return EncodedPrompts(spans, {text: each.padded(longest, empty) for text, each in encoded.items()}, negative)

    def condition(  # noqa: PLR0917
        self, system: OpenedModel, prompts: EncodedPrompts, request: Request, canvas: Canvas, on_event: OnEvent
    ) -> Conditions:
        config, model = cast(Config, system.config), cast(AnimateDiff, system.model)
        start = canvas.block.start
        frames = range(start, start + request.shape.frames)
        motion = config.motion != "none" and request.shape.frames > 1
        motion_control = options.motion_control_of(request, self.lattice(config))

        sparse = conditioning.scribble_input(request, start) if config.sparse == "scribble" else None
        if config.sparse == "rgb" and canvas.block.way == "native" and not canvas.empty:
            sparse = conditioning.frame_input(request, canvas, system.encode(canvas.video))
        if sparse is not None:
            sparse = replace(
                sparse,
                frames_BCTHW=sparse.frames_BCTHW.to(system.device, system.dtype),
                mask_B1THW=sparse.mask_B1THW.to(system.device, system.dtype),
            )

        levels = self._levels(system, request, canvas)
        steerings = steering.steerings(model, config, request, levels, on_event)
        # Pooled residuals are left out of the negative branch.
        unpooled = tuple(each for each in steerings if not config.controls[each.index].pooled)
        positive_images, negative_images = image_prompts.encode(model, config, request, on_event)
        first = self._first(system, request, canvas, on_event) if motion and config.motion == "pia" else None

        def branch(
            context: Tensor, vector: Tensor | None, steered: tuple[Steering, ...], images: tuple[ImagePrompt, ...]
        ) -> Condition:
            added = None
            if vector is not None:
                sizes = conditioning.sizes(config, request.shape.height, request.shape.width)
                added = torch.cat([vector, sizes.to(vector)], dim=1)
            hint = sparse if motion else None
            return Condition(context[None], added, motion, motion_control, hint, steered, images, first)

        def positive(contexts: Mapping[str, Tensor], vector: Tensor | None) -> Condition:
            context = conditioning.over_frames(prompts.spans, contexts, frames)
            return branch(context, vector, steerings, positive_images)

        def negative(context: Tensor, vector: Tensor | None) -> Condition:
            return branch(context, vector, unpooled, negative_images)

        return Conditions(
            {
                "positive": prompts.over_steps(levels, positive),
                "negative": prompts.negative_over_steps(levels, negative),
            }
        )

    def _levels(self, system: OpenedModel, request: Request, canvas: Canvas) -> NoiseLevel:
        """Noise levels of the sampled steps; an edit skips the first ones."""
        return system.levels(request)[canvas.skipped :]

    def _first(self, system: OpenedModel, request: Request, canvas: Canvas, on_event: OnEvent) -> Tensor | None:
        """PIA's input, or None with a note if the first frame is not fully known."""
        if not bool(canvas.mask[:, :, 0].all()):
            on_event(Note("PIA was trained to animate an image and got none; use animate with an image"))
            return None
        affinity = pia.affinity_of(cast(Config, system.config), request)
        first = system.encode(canvas.video[:, :, :1])[:, :, 0].to(system.device, system.dtype)
        return pia.first_frame_input(first, affinity.to(first))

    def join(self, conditions: Sequence[Condition]) -> Condition | None:
        return conditioning.join(conditions)

    def denoiser(self, system: OpenedModel, condition: Condition, frames: Sequence[int] | None) -> Denoiser:
        model, part = cast(AnimateDiff, system.model), condition.of(frames)
        channels_last(model.unet)
        for network in (model.sparse, *model.controls):
            if network is not None:
                channels_last(network)
        parameterisation = recipe.parameterisation_of(system.config)

        def predict(z: Tensor, level: NoiseLevel) -> Tensor:
            return recipe.run_unet(model, system.config, z, level, part).to(z.dtype)

        return parameterisation.denoiser(predict)


class AnimateDiffCheckpoints(Checkpoints):
    """File layouts, add-on slots and LoRA names."""

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
    """Training objective, settings and stages."""

    loss = staticmethod(recipe.loss)
    settings = staticmethod(recipe.settings_of)

    @property
    def tuning(self) -> Tuning:
        from kinema.families.animatediff.training import TRAINING

        return TRAINING


class AnimateDiffFamily:
    """A personalised image model with a motion module (Guo et al. 2023); a single frame uses the image model alone."""

    name = "animatediff"
    sampling = AnimateDiffSampling()
    checkpoints = AnimateDiffCheckpoints()
    training = AnimateDiffTraining()

    @property
    def presets(self) -> Mapping[str, Config]:
        return PRESETS | {"tiny": with_playroom_words(PRESETS["tiny"])} | POCKETS

    def build(self, config: Config) -> AnimateDiff:
        return AnimateDiff(config)

    blocks = staticmethod(blocks)
    to_json = staticmethod(to_json)
    from_json = staticmethod(from_json)


FAMILY = AnimateDiffFamily()
