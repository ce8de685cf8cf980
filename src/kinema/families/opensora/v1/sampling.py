"""How clips of Open-Sora 1.0 to 1.3 are generated: what `kinema.system.Sampling` asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from kinema.canvas import Canvas
from kinema.diffusion.guidance import Guidance
from kinema.diffusion.parameterise import EPS, Denoiser
from kinema.diffusion.schedules import RectifiedFlow
from kinema.events import OnEvent
from kinema.families.opensora.first_line import masks, process, prompt_file
from kinema.families.opensora.v1 import conditioning, opening, options, strategy, text
from kinema.families.opensora.v1.conditioning import Condition
from kinema.families.opensora.v1.config import Config
from kinema.families.opensora.v1.model import codec_of, transformer_of
from kinema.grid import Lattice
from kinema.schema import BadRequest, Request
from kinema.system import Codec, Conditions, Defaults, OpenedModel, Process, Sampling


@dataclass(frozen=True)
class FirstLineSeries:
    """Loops, and the prompt files of 1.1 and 1.2."""

    config: Config

    def settled(self, request: Request) -> Request:
        options.check_values(self.config, request.extra)
        return request if self.config.version == "1.0" else strategy.settled(self.config, request)

    def blocks(self, request: Request) -> tuple[int, int] | None:
        found = strategy.loops(self.config, request.extra)
        return None if found is None else (strategy.clip_frames(self.config, request, found), found.dropped)

    def read_prompts(self, path: Path) -> Sequence[tuple[str, Mapping[str, Any]]]:
        version = "1.1" if self.config.version == "1.1" else "1.2"
        return [(each.text, _extra(each)) for each in prompt_file.read(path, version)]


class FirstLineSampling(Sampling):
    """IDDPM (1.0, 1.1) or a flow (1.2, 1.3); frames are held clean (1.1, 1.2) or are an input (1.3)."""

    def lattice(self, config: Config) -> Lattice:
        return config.lattice

    def defaults(self, config: Config) -> Defaults:
        return Defaults(
            frames=config.frames,
            height=config.height,
            width=config.width,
            fps=config.fps,
            steps=config.steps,
            sampler="euler" if config.is_flow else "iddpm",
            spacing="uniform" if config.is_flow else process.SPACING,
            guidance=config.guidance,
            clean_frames=config.stdit.holds_frames,
            fits_float16=False,
            sizes=config.sizes,
            extra=options.helped(config),
            series=FirstLineSeries(config),
        )

    def process(self, config: Config, request: Request) -> Process:
        if not config.is_flow:
            return Process(process.BETAS, EPS)
        height, width = config.published(request.shape.height, request.shape.width)
        frames, extra = request.shape.frames, request.extra
        if "flow_shift" in extra:
            return Process(RectifiedFlow(float(extra["flow_shift"])), process.TOWARDS_DATA)
        if config.version == "1.2":
            return Process(process.flow_v1_2(height, width, frames), process.TOWARDS_DATA)
        scale = float(extra.get("transform_scale", 1.0))
        return Process(process.flow_v1_3(height, width, frames, scale), process.TOWARDS_DATA)

    def codec(self, config: Config, model: nn.Module) -> Codec:  # noqa: ARG002 (the model's codec tells its kind)
        return codec_of(model)

    def honours(self, config: Config, kind: str) -> tuple[str, ...]:
        """Whole frames by the transformer, except in 1.0; regions by guidance."""
        if kind == "nothing":
            return ("native",)
        own = ("native",) if config.stdit.holds_frames and kind != "region" else ()
        return (*own, "replacement", "reconstruction")

    def check(self, config: Config, request: Request) -> None:
        if config.absent:
            raise BadRequest(opening.lacking(config))
        options.check(config, request)

    def files(self, request: Request) -> tuple[str, ...]:
        return strategy.references(request.extra) if "reference_path" in request.extra else ()

    def encode_prompt(self, system: OpenedModel, request: Request, on_event: OnEvent) -> Mapping[str, text.Text | None]:
        return text.encode_prompt(system, request, on_event)

    def condition(  # noqa: PLR0917
        self,
        system: OpenedModel,
        words: Mapping[str, text.Text | None],
        request: Request,
        canvas: Canvas,
        on_event: OnEvent,
    ) -> Conditions:
        return conditioning.conditions(system, words, request, canvas, on_event)

    def guidance(self, config: Config, request: Request) -> Guidance | None:
        return conditioning.guidance(config, request)

    def join(self, conditions: Sequence[Condition]) -> Condition | None:
        return conditioning.join(conditions)

    def denoiser(self, system: OpenedModel, condition: Condition, frames: Sequence[int] | None) -> Denoiser:
        network = condition.of(frames).network(transformer_of(system.model))
        if system.config.is_flow:
            return process.flow_denoiser(network)
        return process.iddpm_denoiser(network, variance=condition.variance)


def _extra(prompt: prompt_file.Prompt) -> dict[str, Any]:
    found: dict[str, Any] = {"reference_path": list(prompt.references)} if prompt.references else {}
    return found | ({"mask_strategy": masks.written(prompt.strategy)} if prompt.strategy else {})
