"""Sample clips to measure: many prompts per batch, each clip identical to its single run.

Sampling uses `kinema.guide` and `kinema.rollout`, so that results match what users get; only the conditioning differs:
it is assembled from one prompt (and one canvas) per item.
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
from kinema.diffusion.overwrite import KnownRegion
from kinema.diffusion.parameterise import Denoiser
from kinema.diffusion.schedules import NoiseLevel
from kinema.events import OnEvent, ignore
from kinema.schema import BadRequest, Request
from kinema.settle import with_defaults
from kinema.system import Conditions, OverSteps, System


@dataclass(frozen=True, eq=False)
class Sampling:
    """A system and its sampling settings: ``request`` is complete except for the prompt."""

    system: System
    request: Request

    @classmethod
    def of(cls, system: System, on_event: OnEvent = ignore, **options: Any) -> Sampling:
        """``options`` are fields of `Request` (steps, sampler, guidance, extra…); None is the model's default."""
        return cls(system, with_defaults(system, Request(**options), on_event))

    def clips(self, prompts: Sequence[str], seed: int, canvas: Canvas | None = None) -> Tensor:
        """Generate B×3×T×H×W without restoring given pixels; item i has seed + i.

        ``canvas`` has one item per prompt. A clip longer than the model's limit is generated block by block.
        """
        request = self.request.with_(prompt=prompts[0], seed=seed, clips=len(prompts))
        canvas = Canvas(request.shape) if canvas is None else canvas
        system = _batched(self.system, prompts)
        work = job.stage_run(job.SettledStage("base", system, request), canvas)
        draws = system.noise(request)
        with torch.no_grad():
            if not work.stage.at_once:
                video = rollout.pixels(work, None, draws, ignore)
            else:
                video = system.decode(rollout.latents(work, None, draws, ignore), work.stage.whole)
        return video[:, :, : request.shape.frames]

    def real(self, prompt: str, seed: int) -> Tensor:
        """Render a playroom clip of this prompt at the same size and rate, 3×T×H×W."""
        _, _, frames, height, width = self.request.shape.bcthw
        fps = self.request.fps or 8.0
        rendered = playroom.sample(seed, frames=frames, height=height, width=width, fps=fps, caption=prompt)
        return torch.from_numpy(rendered.video_CTHW)


@dataclass(frozen=True, eq=False)
class _BatchedPrompts(System):
    """The system with one prompt per batch item instead of one for all."""

    prompts: tuple[str, ...] = ()

    def encode_prompt(self, request: Request, on_event: OnEvent = ignore) -> tuple[Any, ...]:
        encode = self.family.sampling.encode_prompt
        return tuple(encode(self, each, on_event) for each in self._each(request))

    def condition(self, words: Any, request: Request, canvas: Canvas, on_event: OnEvent = ignore) -> Conditions:
        condition = self.family.sampling.condition
        items = zip(words, self._each(request), canvas.items(), strict=True)
        each = [condition(self, own, item_request, item, on_event) for own, item_request, item in items]
        regions = self._together([one.regions for one in each])
        given = [one.given for one in each if one.given is not None]
        together = (torch.cat([z for z, _ in given]), torch.cat([mask for _, mask in given])) if given else None
        branches = {name: self._join([one.branches[name] for one in each]) for name in each[0].branches}
        return Conditions(branches, together, regions)

    def _together(self, regions: Sequence[tuple[KnownRegion, ...] | None]) -> tuple[KnownRegion, ...] | None:
        """The regions of all clips, each of which has its own in the same steps. Raises BadRequest for others."""
        held = [each for each in regions if each is not None]
        if not held:
            return None
        kinds = {tuple((region.release, region.noise) for region in each) for each in held}
        if len(held) < len(regions) or len(kinds) > 1:
            raise BadRequest(f"{self.name} cannot sample clips with different given frames in one batch: use --batch 1")
        return tuple(_joined(same) for same in zip(*held, strict=True))

    def _each(self, request: Request) -> list[Request]:
        """The request of each clip; clip i has seed + i."""
        seed = request.seed or 0
        return [replace(request, prompt=text, seed=seed + i, clips=1) for i, text in enumerate(self.prompts)]

    def _join(self, conditions: Sequence[Any]) -> Any:
        if any(isinstance(condition, OverSteps) for condition in conditions):
            return _Unbatched(conditions)
        joined = self.family.sampling.join(conditions)
        return _Unbatched(conditions) if joined is None else joined

    def join_branches(self, conditions: Sequence[Any]) -> Any | None:
        unbatched = any(isinstance(condition, _Unbatched) for condition in conditions)
        return None if unbatched else super().join_branches(conditions)

    def denoiser(self, condition: Any, frames: Sequence[int] | None = None) -> Denoiser:
        if not isinstance(condition, _Unbatched):
            return super().denoiser(condition, frames)
        each = [super(_BatchedPrompts, self).denoiser(one, frames) for one in condition.each]

        def denoise(z_BCTHW: Tensor, level: NoiseLevel) -> Tensor:
            levels = level.batch(len(each)) if len(level) == 1 else level
            return torch.cat([one(z_BCTHW[i : i + 1], levels[i]) for i, one in enumerate(each)])

        return denoise


def _joined(regions: Sequence[KnownRegion]) -> KnownRegion:
    content, mask = (torch.cat(parts) for parts in zip(*((one.content, one.mask) for one in regions), strict=True))
    return replace(regions[0], content=content, mask=mask)


@dataclass(frozen=True, eq=False)
class _Unbatched:
    """Conditions that cannot be batched: their clips are denoised one after another."""

    each: Sequence[Any]


def _batched(system: System, prompts: Sequence[str]) -> System:
    if len(prompts) == 1:
        return system
    plain = {f.name: getattr(system, f.name) for f in fields(System) if f.init}
    batched = _BatchedPrompts(**plain, prompts=tuple(prompts))
    object.__setattr__(batched, "runtime", system.runtime)  # share one network between batches
    return batched
