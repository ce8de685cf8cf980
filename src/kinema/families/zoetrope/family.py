"""Zoetrope as a `Family`: pixel-space rectified flow with native canvas and text conditioning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kinema.canvas import Canvas
from kinema.checkpoints.settings import build_config
from kinema.conditioning.pocket import PocketTokenizer, note_unknown_words
from kinema.data import playroom
from kinema.diffusion.parameterise import X0, Denoiser
from kinema.diffusion.schedules import NoiseLevel, RectifiedFlow
from kinema.events import Note, OnEvent
from kinema.families.zoetrope import recipe
from kinema.families.zoetrope.config import PRESETS, Config
from kinema.families.zoetrope.model import Zoetrope, blocks
from kinema.grid import FrameGrid, LatentGrid, Lattice
from kinema.schema import BadRequest, Request
from kinema.system import Checkpoints, Conditions, Defaults, OpenedModel, Process, Sampling, Training, TrainingSettings
from kinema.vae.pixel import PixelCodec
from kinema.values import quoted


@dataclass(frozen=True)
class Condition:
    """Word ids B×L and the canvas: ``given`` B×3×T×H×W with ``mask`` B×1×T×H×W."""

    ids_BL: Tensor
    given_BCTHW: Tensor
    mask_B1THW: Tensor
    per_frame: bool = False


class ZoetropeSampling(Sampling):
    """Sampling of Zoetrope models."""

    def lattice(self, config: Config) -> Lattice:
        return Lattice(
            LatentGrid(FrameGrid(multiple=config.merge)),
            side_multiple=config.side,
            min_side=config.side,
            max_side=config.side,
            max_frames=config.frames,
        )

    def defaults(self, config: Config) -> Defaults:
        return Defaults(
            frames=config.frames,
            height=config.side,
            width=config.side,
            fps=config.fps,
            steps=40,
            # Ancestral noise lets each step correct errors of the previous one. On 24 prompts of the training split
            # guidance 2 gave more correct shapes than 1.5 (model card); at 3 earlier weights distorted triangles.
            sampler="vdm-ancestral",
            guidance=2.0,
            # Guidance 2 subtracts the negative branch's clip from twice the positive one's; at low noise the negative
            # branch's sprite would show.
            guidance_interval=(-math.inf, 0.0) if config.sprite else None,
            enlarges=True,
            fits_float16=False,  # measured: every clip is NaN
            options={"gamma": 0.3},
            extra={"per_frame": "process every frame by itself, as an image model; default false"},
        )

    def process(self, config: Config, request: Request) -> Process:  # noqa: ARG002
        return Process(RectifiedFlow(config.shift), X0)

    def codec(self, config: Config, model: nn.Module) -> PixelCodec:  # noqa: ARG002
        return PixelCodec()

    def honours(self, config: Config, kind: str) -> tuple[str, ...]:  # noqa: ARG002
        """Native for every kind of canvas: all of them are in the training mix."""
        return ("native",) if kind == "nothing" else ("native", "reconstruction", "replacement")

    def check(self, config: Config, request: Request) -> None:  # noqa: ARG002
        if unknown := sorted(set(request.extra) - {"per_frame"}):
            raise BadRequest(f"zoetrope has no option {quoted(unknown[0])}; it has per_frame")
        if not isinstance(per_frame := request.extra.get("per_frame", False), bool):
            raise BadRequest(f"per_frame is {quoted(per_frame)}; expected true or false")

    def encode_prompt(self, system: OpenedModel, request: Request, on_event: OnEvent) -> dict[str, Tensor]:
        config: Config = system.config
        tokenizer = PocketTokenizer(config.words)
        texts = (request.prompt, request.negative_prompt)
        note_unknown_words(tokenizer, system.name, texts, on_event)
        for text in texts:
            if (count := len(tokenizer.split(text))) > config.text_length:
                on_event(Note(f"the prompt has {count} words; {system.name} uses the first {config.text_length}"))
        ids = [tokenizer.encode([text] * request.clips, config.text_length).to(system.device) for text in texts]
        return {"positive": ids[0], "negative": ids[1]}

    def condition(  # noqa: PLR0917
        self,
        system: OpenedModel,
        words: Mapping[str, Tensor],
        request: Request,
        canvas: Canvas,
        on_event: OnEvent,  # noqa: ARG002
    ) -> Conditions:
        given = canvas.video.to(system.device, system.dtype)
        mask = canvas.mask.to(system.device, system.dtype)
        if canvas.block.way != "native":
            mask = torch.zeros_like(mask)  # guidance holds the pixels; native conditioning would distort comparisons
        per_frame = bool(request.extra.get("per_frame"))
        return Conditions({branch: Condition(ids, given, mask, per_frame) for branch, ids in words.items()})

    def join(self, conditions: Sequence[Condition]) -> Condition:
        ids, given, mask = (
            torch.cat([getattr(condition, name) for condition in conditions])
            for name in ("ids_BL", "given_BCTHW", "mask_B1THW")
        )
        return Condition(ids, given, mask, conditions[0].per_frame)

    def denoiser(self, system: OpenedModel, condition: Condition, frames: Sequence[int] | None) -> Denoiser:
        given, mask = condition.given_BCTHW, condition.mask_B1THW
        if frames is not None:
            given, mask = given[:, :, list(frames)], mask[:, :, list(frames)]
        model = system.model

        def network(z_BCTHW: Tensor, level: NoiseLevel) -> Tensor:
            z = z_BCTHW.to(system.dtype)  # the sampler's state stays in float32
            log_snr = level.log_snr.to(z_BCTHW.device, torch.float32)
            estimate = model(z, log_snr, condition.ids_BL, given, mask, per_frame=condition.per_frame)
            return estimate.x0.to(z_BCTHW.dtype)

        return X0.denoiser(network)


class ZoetropeCheckpoints(Checkpoints):
    """Weight files of Zoetrope models."""

    # Foreign files are not recognised: the weights are useless without the vocabulary in Kinema's metadata.

    def convert(self, config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002
        raise BadRequest("this file is in a foreign layout; zoetrope loads only files that Kinema wrote")


class ZoetropeTraining(Training):
    """Training of Zoetrope models."""

    tuning = None
    loss = staticmethod(recipe.loss)

    def settings(self, config: Config) -> TrainingSettings:
        return recipe.TINY if config.width < 64 else recipe.RECIPE


class ZoetropeFamily:
    """The embedded default model: see README.md in this folder."""

    name = "zoetrope"
    sampling = ZoetropeSampling()
    checkpoints = ZoetropeCheckpoints()
    training = ZoetropeTraining()

    @property
    def presets(self) -> Mapping[str, Config]:
        words = tuple(playroom.vocabulary())
        return {name: replace(config, words=words) for name, config in PRESETS.items()}

    def build(self, config: Config) -> nn.Module:
        return Zoetrope(config, PocketTokenizer(config.words).size)

    blocks = staticmethod(blocks)
    to_json = staticmethod(asdict)

    def from_json(self, data: Mapping[str, Any]) -> Config:
        return build_config(Config, data, "the config of this file")


FAMILY = ZoetropeFamily()
