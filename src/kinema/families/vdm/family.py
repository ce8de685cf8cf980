"""VDM as a `kinema.system.Family`. Guidance, canvases and windows are applied around it in generate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from kinema import processor, registry
from kinema.canvas import Canvas
from kinema.conditioning.pocket import PocketTokenizer, note_unknown_words
from kinema.diffusion.parameterise import Denoiser
from kinema.diffusion.schedules import NoiseLevel
from kinema.events import OnEvent
from kinema.families.vdm import checkpoint, recipe
from kinema.families.vdm.condition import Condition, class_index, encode
from kinema.families.vdm.config import Config, from_json, presets, to_json
from kinema.families.vdm.model import UNetLevel, VideoUNet
from kinema.grid import LatentGrid, Lattice
from kinema.schema import BadRequest, Request
from kinema.system import Checkpoints, Conditions, Defaults, OpenedModel, Process, Sampling, Training
from kinema.vae.pixel import PixelCodec
from kinema.values import quoted

_EXTRA = {"per_frame": bool}
"""``per_frame=True`` processes each frame independently: the same weights as an image model."""


class VDMSampling(Sampling):
    """Sampling of VDM models."""

    def lattice(self, config: Config) -> Lattice:
        return Lattice(LatentGrid(), side_multiple=config.multiple, max_frames=config.frames)

    def defaults(self, config: Config) -> Defaults:
        sampler = config.sampler or ("vdm-langevin" if config.delta else "vdm-ancestral")
        own = {"vdm-ancestral": {"gamma": config.gamma}, "vdm-langevin": {"gamma": config.gamma, "delta": config.delta}}
        return Defaults(
            frames=config.frames,
            height=config.side,
            width=config.side,
            fps=config.fps,
            steps=config.sampling_steps,
            sampler=sampler,
            guidance=config.guidance,
            options=own.get(sampler, {}),
            takes_prompt=config.conditional,
            enlarges=True,
            threshold=1.0 if config.clips_x0 else None,  # eps estimates divide by alpha, 5e-5 at the noise end
            extra={"per_frame": "process every frame by itself, as an image model; default false"},
        )

    def process(self, config: Config, request: Request) -> Process:  # noqa: ARG002
        return Process(recipe.schedule(config), recipe.parameterisation(config))

    def codec(self, config: Config, model: nn.Module) -> PixelCodec:  # noqa: ARG002
        return PixelCodec()

    def honours(self, config: Config, kind: str) -> tuple[str, ...]:  # noqa: ARG002
        """Guidance only (§3.2): VDM is trained without a canvas."""
        return ("native",) if kind == "nothing" else ("reconstruction", "replacement")

    def check(self, config: Config, request: Request) -> None:
        for name, value in request.extra.items():
            if name not in _EXTRA:
                raise BadRequest(registry.unknown_name("option of vdm", name, _EXTRA))
            if not isinstance(value, _EXTRA[name]):
                raise BadRequest(f"{name} is {quoted(value)}; expected true or false")
        if not config.conditional:
            if request.prompt.strip() or request.negative_prompt.strip():
                raise BadRequest("this vdm model was trained without text; leave out the prompt")
            if request.guidance not in (None, 1) or request.guidance_end not in (None, 1):
                raise BadRequest("this vdm model is unconditional and supports no guidance; leave guidance out")
        for prompt in (request.prompt, request.negative_prompt):
            if config.classes and prompt.strip():
                class_index(config, prompt)

    def encode_prompt(self, system: OpenedModel, request: Request, on_event: OnEvent) -> dict[str, Tensor | None]:
        config = system.config
        if config.text == "pocket":
            texts = (request.prompt, request.negative_prompt)
            note_unknown_words(PocketTokenizer(config.words), system.name, texts, on_event)

        def encoded(prompt: str) -> Tensor | None:
            return encode(system.model, config, [prompt], offline=system.offline) if prompt.strip() else None

        return {"positive": encoded(request.prompt), "negative": encoded(request.negative_prompt)}

    def condition(  # noqa: PLR0917
        self,
        system: OpenedModel,  # noqa: ARG002
        words: Mapping[str, Tensor | None],
        request: Request,
        canvas: Canvas,  # noqa: ARG002
        on_event: OnEvent,  # noqa: ARG002
    ) -> Conditions:
        per_frame = bool(request.extra.get("per_frame", False))
        return Conditions({branch: Condition(vector, per_frame) for branch, vector in words.items()})

    def join(self, conditions: Sequence[Condition]) -> Condition | None:
        vectors = [condition.vector for condition in conditions]
        encoded = [vector for vector in vectors if vector is not None]
        if encoded and len(encoded) < len(vectors):
            return None
        return replace(conditions[0], vector=torch.cat(encoded) if encoded else None)

    def denoiser(self, system: OpenedModel, condition: Condition, frames: Sequence[int] | None) -> Denoiser:  # noqa: ARG002
        """Ignores ``frames``: positions are relative and the condition applies to the whole clip."""
        model = system.model

        def network(z_BCTHW: Tensor, level: NoiseLevel) -> Tensor:
            independent = z_BCTHW.shape[2] if condition.per_frame else 0
            z = z_BCTHW.to(system.dtype)  # the sampler's state stays in float32
            log_snr = processor.to_device(level.log_snr, z_BCTHW.device)
            return model(z, log_snr, condition.vector, independent=independent).to(z_BCTHW.dtype)

        return recipe.parameterisation(system.config).denoiser(network)


class VDMCheckpoints(Checkpoints):
    """Weight files of VDM models."""

    # Foreign files are not recognised: only Kinema's metadata states the prediction target and the vocabulary, without
    # which a model would run but generate garbage.
    convert = staticmethod(checkpoint.convert)


class VDMTraining(Training):
    """Training of VDM models."""

    loss = staticmethod(recipe.loss)
    settings = staticmethod(recipe.recipe)


class VDM:
    """Video Diffusion Models (Ho et al. 2022): pixel space, factorised U-Net, every canvas by guidance."""

    name = "vdm"
    sampling = VDMSampling()
    checkpoints = VDMCheckpoints()
    training = VDMTraining()

    @property
    def presets(self) -> Mapping[str, Config]:
        return presets()

    def build(self, config: Config) -> VideoUNet:
        return VideoUNet(config)

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        return [module for module in model.modules() if isinstance(module, UNetLevel)]

    to_json = staticmethod(to_json)
    from_json = staticmethod(from_json)


FAMILY = VDM()
