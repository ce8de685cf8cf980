"""A family in one file: everything that a new one has to say, and nothing more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kinema.api import Model
from kinema.canvas import Canvas
from kinema.diffusion.parameterise import X0, Denoiser
from kinema.diffusion.schedules import RectifiedFlow
from kinema.grid import Lattice
from kinema.schema import OnEvent, Request
from kinema.system import Batch, Conditions, Defaults, Opened, Process, Recipe, System, Weights
from kinema.vae.pixel import PixelCodec


@dataclass(frozen=True)
class Config:
    side: int = 16


class Grey:
    """How its clips are made: every clip is grey, whatever is asked for."""

    lattice = staticmethod(lambda config: Lattice(min_side=config.side, max_frames=4))
    defaults = staticmethod(lambda config: Defaults(4, config.side, config.side, steps=2, takes_prompt=False))
    process = staticmethod(lambda _config: Process(RectifiedFlow(), X0))
    codec = staticmethod(lambda _config, _model: PixelCodec())
    honours = staticmethod(lambda _config, _kind: ("replacement", "reconstruction"))
    check = staticmethod(lambda _config, _request: None)
    files = staticmethod(lambda _request: ())
    guidance = staticmethod(lambda _config, _request: None)
    join = staticmethod(lambda conditions: conditions[0])

    def condition(self, system: Opened, request: Request, canvas: Canvas, on_event: OnEvent) -> Conditions:
        return Conditions({"positive": None, "negative": None})

    def denoiser(self, system: Opened, condition: Any, frames: Sequence[int] | None) -> Denoiser:
        return X0.denoiser(lambda z, level: system.model(z))


class Files:
    recognise = staticmethod(lambda _source: None)
    convert = staticmethod(lambda _config, tensors: dict(tensors))
    lora_aliases = staticmethod(lambda _config: {})
    slots = layouts = None


class Lessons:
    recipe = staticmethod(lambda _config: Recipe(steps=1, batch=1, learning_rate=1e-3))
    tuning = None

    def loss(self, model: nn.Module, config: Config, batch: Batch, generator: torch.Generator) -> Tensor:
        return model(batch.video).flatten(1).square().mean(1)


class Nothing:
    name, sampling, checkpoints, training = "nothing", Grey(), Files(), Lessons()
    presets: Mapping[str, Config] = {"tiny": Config()}
    blocks = staticmethod(lambda model: [model])
    to_json = staticmethod(asdict)

    def build(self, config: Config) -> nn.Module:
        return nn.Conv3d(3, 3, 1)

    def from_json(self, told: Mapping[str, Any]) -> Config:
        return Config(**told)


def model() -> Model:
    return Model(System("nothing", Nothing(), Config(), Weights()))


def test_a_family_of_one_short_file_answers_requests() -> None:
    clip = model().run(Request(seed=1))
    assert clip.shape.bcthw == (1, 3, 4, 16, 16)
    assert torch.equal(clip.video, model().run(Request(seed=1)).video)
    longer = model().run(Request(seed=1, frames=10, window=4))
    assert longer.shape.frames == 10
