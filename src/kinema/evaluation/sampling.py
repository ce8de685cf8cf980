"""Clips to measure: many prompts in one batch, each clip what its single run would be.

Sampling goes through `kinema.guide` and `kinema.rollout`, so that what is measured is what users get; only the
conditioning differs, which is put together from one prompt (and one canvas) an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from kinema import job, rollout
from kinema.canvas import Canvas
from kinema.data import playroom
from kinema.diffusion.parameterise import Denoiser
from kinema.diffusion.schedules import NoiseLevel
from kinema.events import OnEvent, ignore
from kinema.schema import Request
from kinema.settle import with_defaults
from kinema.system import Conditions, System


@dataclass(frozen=True, eq=False)
class Sampling:
    """A system and how it is sampled: ``request`` is settled, and holds no prompt yet."""

    system: System
    request: Request

    @classmethod
    def of(cls, system: System, on_event: OnEvent = ignore, **told: Any) -> Sampling:
        """``told`` are options of `Request` (steps, sampler, guidance, extra…); None is the model's own."""
        return cls(system, with_defaults(system, Request(**told), on_event))

    def clips(self, prompts: Sequence[str], seed: int, canvas: Canvas | None = None) -> Tensor:
        """The model's own output B×3×T×H×W, given pixels not put back; item i has seed + i.

        ``canvas`` holds one item a prompt. A clip longer than the model is made block by block.
        """
        request = self.request.with_(prompt=prompts[0], seed=seed, clips=len(prompts))
        canvas = Canvas(request.shape) if canvas is None else canvas
        system = _together(self.system, prompts)
        work = job.stage_run(job.SettledStage("base", system, request), canvas)
        draws = system.noise(request)
        with torch.no_grad():
            if not work.stage.at_once:
                video = rollout.pixels(work, None, draws, ignore)
            else:
                video = system.decode(rollout.latents(work, None, draws, ignore))
        return video[:, :, : request.shape.frames]

    def real(self, prompt: str, seed: int) -> Tensor:
        """A playroom clip of this prompt at the same size and rate, 3×T×H×W."""
        _, _, frames, height, width = self.request.shape.bcthw
        fps = self.request.fps or 8.0
        made = playroom.sample(seed, frames=frames, height=height, width=width, fps=fps, caption=prompt)
        return torch.from_numpy(made.video_CTHW)


@dataclass(frozen=True, eq=False)
class _Together(System):
    """The same system, whose conditions come from one prompt a batch item instead of one for all."""

    prompts: tuple[str, ...] = ()

    def encode_prompt(self, request: Request, on_event: OnEvent = ignore) -> tuple[Any, ...]:
        encode = self.family.sampling.encode_prompt
        return tuple(encode(self, each, on_event) for each in self._each(request))

    def condition(self, words: Any, request: Request, canvas: Canvas, on_event: OnEvent = ignore) -> Conditions:
        condition = self.family.sampling.condition
        told = zip(words, self._each(request), canvas.items(), strict=True)
        each = [condition(self, own, asked, item, on_event) for own, asked, item in told]
        return Conditions({name: self._join([one.branches[name] for one in each]) for name in each[0].branches})

    def _each(self, request: Request) -> list[Request]:
        """The request of each clip: clip i has seed + i."""
        seed = request.seed or 0
        return [replace(request, prompt=text, seed=seed + i, clips=1) for i, text in enumerate(self.prompts)]

    def _join(self, conditions: Sequence[Any]) -> Any:
        joined = self.family.sampling.join(conditions)
        return _Apart(conditions) if joined is None else joined

    def denoiser(self, condition: Any, frames: Sequence[int] | None = None) -> Denoiser:
        if not isinstance(condition, _Apart):
            return self.family.sampling.denoiser(self, condition, frames)
        each = [self.family.sampling.denoiser(self, one, frames) for one in condition.each]

        def denoise(z_BCTHW: Tensor, level: NoiseLevel) -> Tensor:
            levels = level.batch(len(each)) if len(level) == 1 else level
            return torch.cat([one(z_BCTHW[i : i + 1], levels[i]) for i, one in enumerate(each)])

        return denoise


@dataclass(frozen=True, eq=False)
class _Apart:
    """Conditions that no batch holds: their clips are denoised one after the other."""

    each: Sequence[Any]


def _together(system: System, prompts: Sequence[str]) -> System:
    if len(prompts) == 1:
        return system
    plain = {f.name: getattr(system, f.name) for f in fields(System) if f.init}
    together = _Together(**plain, prompts=tuple(prompts))
    object.__setattr__(together, "runtime", system.runtime)  # one network, not one a batch
    return together
