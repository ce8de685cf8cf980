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

from kinema import guide, job, rollout
from kinema.data import playroom
from kinema.diffusion.parameterise import Denoiser
from kinema.diffusion.schedules import Level
from kinema.schema import Canvas, OnEvent, Request, ignore
from kinema.system import Conditions, System


@dataclass(frozen=True, eq=False)
class Sampling:
    """A system and how it is sampled: ``request`` is settled, and holds no prompt yet."""

    system: System
    request: Request

    @classmethod
    def of(cls, system: System, on_event: OnEvent = ignore, **told: Any) -> Sampling:
        """``told`` are options of `Request` (steps, sampler, guidance, extra…); None is the model's own."""
        return cls(system, system.settle(Request(**told), on_event))

    def clips(self, prompts: Sequence[str], seed: int, canvas: Canvas | None = None) -> Tensor:
        """The model's own output B×3×T×H×W, given pixels not put back; item i has seed + i.

        ``canvas`` holds one item a prompt. A clip longer than the model is made block by block.
        """
        request = self.request.with_(prompt=prompts[0], seed=seed, clips=len(prompts))
        if canvas is None:
            canvas = Canvas(torch.zeros(request.shape.bcthw), torch.zeros(len(prompts), 1, *request.shape.bcthw[2:]))
        system, asked = _together(self.system, prompts), request.shape.frames
        request, canvas = job.on_lattice(system, request, canvas)
        draws = system.noise(request)
        with torch.no_grad():
            if job.rolls_out(system, request):
                video = rollout.roll_out(system, request, canvas, None, draws, ignore)
            else:
                noise = draws.normal(system.latent_shape(request).bcthw[1:])
                video = system.decode(guide.sample(system, request, canvas, noise, draws))
        return video[:, :, :asked]

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

    def condition(self, request: Request, canvas: Canvas, on_event: OnEvent = ignore) -> Conditions:
        seed = request.seed or 0
        each = [
            self.family.sampling.condition(
                self, replace(request, prompt=prompt, seed=seed + i, clips=1), _item(canvas, i), on_event
            )
            for i, prompt in enumerate(self.prompts)
        ]
        return Conditions({name: self._join([told.branches[name] for told in each]) for name in each[0].branches})

    def _join(self, conditions: Sequence[Any]) -> Any:
        joined = self.family.sampling.join(conditions)
        return _Apart(conditions) if joined is None else joined

    def denoiser(self, condition: Any, frames: Sequence[int] | None = None) -> Denoiser:
        if not isinstance(condition, _Apart):
            return self.family.sampling.denoiser(self, condition, frames)
        each = [self.family.sampling.denoiser(self, one, frames) for one in condition.each]

        def denoise(z_BCTHW: Tensor, level: Level) -> Tensor:
            levels = level.batch(len(each)) if len(level) == 1 else level
            return torch.cat([one(z_BCTHW[i : i + 1], levels[i]) for i, one in enumerate(each)])

        return denoise


@dataclass(frozen=True, eq=False)
class _Apart:
    """Conditions that no batch holds: their clips are denoised one after the other."""

    each: Sequence[Any]


def _item(canvas: Canvas, i: int) -> Canvas:
    """One clip of a canvas."""

    def cut(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[i : i + 1]

    video, mask = canvas.video[i : i + 1], canvas.mask[i : i + 1]
    return replace(canvas, video=video, mask=mask, source=cut(canvas.source), anchor=cut(canvas.anchor))


def _together(system: System, prompts: Sequence[str]) -> System:
    if len(prompts) == 1:
        return system
    plain = {f.name: getattr(system, f.name) for f in fields(System) if f.init}
    together = _Together(**plain, prompts=tuple(prompts))
    object.__setattr__(together, "runtime", system.runtime)  # one network, not one a batch
    return together
