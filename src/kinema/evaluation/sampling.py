"""Clips to measure: many prompts in one batch, each clip what its single run would be.

Sampling goes through `kinema.generate`, so that what is measured is what users get; only the
conditioning differs, which is put together from one prompt (and one canvas) an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kinema import generate
from kinema.data import playroom
from kinema.schema import BadRequest, Canvas, OnEvent, Request, ignore
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
        request, canvas = generate.on_lattice(system, request, canvas)
        draws = system.noise(request)
        with torch.no_grad():
            if generate.rolls_out(system, request):
                video = generate.roll_out(system, request, canvas, None, draws, ignore)
            else:
                noise = draws.normal(system.latent_shape(request).bcthw[1:])
                video = system.decode(generate.sample(system, request, canvas, noise, draws))
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
        each = [
            self.family.condition(
                self,
                replace(request, prompt=prompt, clips=1),
                Canvas(canvas.video[i : i + 1], canvas.mask[i : i + 1]),
                on_event,
            )
            for i, prompt in enumerate(self.prompts)
        ]
        return Conditions(join([c.positive for c in each]), join([c.negative for c in each]))


def _together(system: System, prompts: Sequence[str]) -> System:
    if len(prompts) == 1:
        return system
    plain = {f.name: getattr(system, f.name) for f in fields(System)}
    together = _Together(**plain, prompts=tuple(prompts))
    vars(together)["model"] = system.model  # one network, not one a batch
    return together


def join(conditions: Sequence[Any]) -> Any:
    """A family's conditions of one clip each as those of a batch: tensors side by side, the rest must agree."""
    first = conditions[0]
    if not is_dataclass(first) or isinstance(first, type):
        raise BadRequest(f"conditions of type {type(first).__name__} fit no batch; evaluate with --batch 1")
    joined = {}
    for f in fields(first):
        values = [getattr(condition, f.name) for condition in conditions]
        if all(isinstance(value, Tensor) for value in values):
            joined[f.name] = torch.cat(values)
        elif all(not isinstance(value, Tensor) and value == values[0] for value in values):
            joined[f.name] = values[0]
        else:
            raise BadRequest(f"{f.name} differs between these prompts as no batch can hold; evaluate with --batch 1")
    return replace(first, **joined)
