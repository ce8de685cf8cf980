"""A minimal model family in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kinema import system as of
from kinema.api import Model
from kinema.diffusion.parameterise import X0, Denoiser
from kinema.diffusion.schedules import RectifiedFlow
from kinema.grid import Lattice
from kinema.schema import Request
from kinema.vae.pixel import PixelCodec


@dataclass(frozen=True)
class Config:
    side: int = 16


class Grey(of.Sampling):
    """Sampling that generates grey clips."""

    lattice = staticmethod(lambda config: Lattice(min_side=config.side, max_frames=4))
    defaults = staticmethod(lambda config: of.Defaults(4, config.side, config.side, steps=2, takes_prompt=False))
    process = staticmethod(lambda _config, _shape: of.Process(RectifiedFlow(), X0))
    codec = staticmethod(lambda _config, _model: PixelCodec())
    honours = staticmethod(lambda _config, _kind: ("replacement", "reconstruction"))
    check = staticmethod(lambda _config, _request: None)
    encode_prompt = staticmethod(lambda *_told: None)
    condition = staticmethod(lambda *_told: of.Conditions({"positive": None, "negative": None}))
    join = staticmethod(lambda conditions: conditions[0])

    def denoiser(self, system: of.OpenedModel, condition: Any, frames: Sequence[int] | None) -> Denoiser:
        return X0.denoiser(lambda z, level: system.model(z))


class Files(of.Checkpoints):
    convert = staticmethod(lambda _config, tensors: dict(tensors))


class Lessons(of.Training):
    settings = staticmethod(lambda _config: of.TrainingSettings(steps=1, batch=1, learning_rate=1e-3))

    def loss(self, model: nn.Module, config: Config, batch: of.Batch, generator: torch.Generator) -> Tensor:
        return model(batch.video).flatten(1).square().mean(1)


class Nothing:
    name, sampling, checkpoints, training = "nothing", Grey(), Files(), Lessons()
    presets: Mapping[str, Config] = {"tiny": Config()}
    blocks = staticmethod(lambda model: [model])
    to_json = staticmethod(asdict)

    def build(self, config: Config) -> nn.Module:
        return nn.Conv3d(3, 3, 1)

    def from_json(self, args: Mapping[str, Any]) -> Config:
        return Config(**args)


def model() -> Model:
    return Model(of.System("nothing", Nothing(), Config(), of.Weights()))


def test_a_minimal_family_generates_clips() -> None:
    clip = model().run(Request(seed=1))
    assert clip.shape.bcthw == (1, 3, 4, 16, 16)
    assert torch.equal(clip.video, model().run(Request(seed=1)).video)
    longer = model().run(Request(seed=1, frames=10, window=4))
    assert longer.shape.frames == 10
