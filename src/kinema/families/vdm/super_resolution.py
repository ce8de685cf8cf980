"""Spatial super-resolution by reconstruction guidance (§3.2), alone or together with extension in time.

VDM has no super-resolution network: a large model that never saw a small clip is steered so that its
estimate, made small again, is the small clip. `cascade` is the paper's demonstration: 16×64×64 at
frameskip 4 becomes 64×128×128 at frameskip 1 by a 9×128×128 model, block after block.
"""

from __future__ import annotations

from functools import partial

import torch
from einops import reduce
from torch import Tensor

from kinema.diffusion.guidance import Guided, Measurement, Reconstruction, Thresholded
from kinema.diffusion.noise import Noise
from kinema.diffusion.overwrite import Known, Overwrite
from kinema.diffusion.parameterise import Denoiser
from kinema.diffusion.samplers import SAMPLERS
from kinema.schema import BadRequest, Canvas, OnEvent, Phase, Request, ignore
from kinema.system import System

WEIGHT = 9.0
"""w_r. The paper gives 50 (BAIR) and 9 (Kinetics) for prediction in time, and none for super-resolution."""


def smaller(video_BCTHW: Tensor, factor: int, every: int = 1) -> Tensor:
    """The small clip of a large one: every ``every``-th frame, ``factor``×``factor`` pixels averaged into one."""
    return reduce(video_BCTHW[:, :, ::every], "b c t (h p) (w q) -> b c t h w", "mean", p=factor, q=factor)


def steered(
    denoise: Denoiser,
    low_BCTHW: Tensor,
    *,
    factor: int,
    every: int = 1,
    weight: float = WEIGHT,
    known: Known | None = None,
    limit: float | None = None,
) -> Denoiser:
    """A denoiser whose estimates, made `smaller`, are drawn to ``low``; and to ``known``, large frames that are given.

    ``limit`` bounds the steered estimate (`Defaults.threshold`).
    """
    measured = [] if known is None else [Measurement.of_piece(known.content, known.mask, weight)]
    measured.append(Measurement(partial(smaller, factor=factor, every=every), low_BCTHW, weight))
    steering = Reconstruction(denoise, measured, None if known is None else known.mask)
    return steering if limit is None else Thresholded(steering, limit)


def super_resolve(
    system: System,
    low_BCTHW: Tensor,
    request: Request,
    *,
    every: int = 1,
    weight: float = WEIGHT,
    on_event: OnEvent = ignore,
) -> Tensor:
    """A small clip T×h×w in [-1, 1] as ``every``·T frames at the request's size (the model's own by default).

    ``every`` > 1 also fills in the frames between. Clips longer than the model are made in blocks, each held
    to the last frame of the one before. Raises BadRequest where the large sides are not one whole multiple
    of the small ones, or blocks cannot meet at given frames.
    """
    _refuse_unused(request)
    total = every * low_BCTHW.shape[2]
    length = min(system.config.frames, total)
    request = system.settle(request.with_(frames=length))
    factor = _factor(low_BCTHW, request)
    if total > length and (length == 1 or (length - 1) % every):
        raise BadRequest(f"blocks of {length} frames do not begin and end at given ones, which are {every} apart")
    if request.seed is None or request.clips != low_BCTHW.shape[0]:
        raise BadRequest(f"super-resolution of {low_BCTHW.shape[0]} clips needs a request of as many, with a seed")
    denoise = _guided(system, request, on_event)
    noise, limit = system.noise(request), system.family.sampling.defaults(system.config).threshold
    made: list[Tensor] = []
    starts = range(0, total, length - 1) if total > length else (0,)
    for start in starts:
        frames = min(length, total - start)
        if made and frames == 1:  # the last block would only repeat the frame it begins with
            break
        on_event(Phase("sample", f"frames {start} to {start + frames - 1}"))
        low = low_BCTHW[:, :, start // every : (start + frames - 1) // every + 1]
        known = _held(made[-1], frames) if made else None
        block = steered(denoise, low, factor=factor, every=every, weight=weight, known=known, limit=limit)
        made.append(_sample(system, block, request.with_(frames=frames), noise, known))
    return torch.cat([made[0], *(block[:, :, 1:] for block in made[1:])], dim=2)


def cascade(
    base: System, upper: System, request: Request, *, every: int = 4, weight: float = WEIGHT, on_event: OnEvent = ignore
) -> Tensor:
    """A clip from the base model at frameskip ``every``, then in full by the upper model, at its own side.

    Returns B×3×(every·T)×H×W in [-1, 1]. With the presets text-large and text-128 and ``every=4`` this is the
    paper's 64×128×128. The request's sizes are left to the two models; it needs a seed.
    """
    _refuse_unused(request)
    small = base.settle(request.with_(frames=None, height=None, width=None))
    on_event(Phase("sample", f"{small.frames} frames at {small.width}×{small.height}"))
    limit = base.family.sampling.defaults(base.config).threshold
    guided = _guided(base, small, on_event)
    low = _sample(base, guided if limit is None else Thresholded(guided, limit), small, base.noise(small))
    large = request.with_(frames=None, height=None, width=None)
    return super_resolve(upper, low, large, every=every, weight=weight, on_event=on_event)


def _refuse_unused(request: Request) -> None:
    """Nothing that a request asks for is passed over in silence."""
    media = ("image", "last_image", "video", "mask", "region", "every", "keep")
    for name in ("guidance_end", *media, "window", "noise_type", "free_init"):
        if getattr(request, name) is not None:
            raise BadRequest(f"super-resolution makes no use of {name}: leave it out")


def _factor(low_BCTHW: Tensor, request: Request) -> int:
    height, width = low_BCTHW.shape[3:]
    shape = request.shape
    if shape.height % height or shape.height // height * width != shape.width:
        raise BadRequest(f"{shape.width}×{shape.height} is not one whole multiple of the small clip's {width}×{height}")
    return shape.height // height


def _held(before_BCTHW: Tensor, frames: int) -> Known:
    """The last frame of the block before, as the first one."""
    video = before_BCTHW[:, :, -1:].repeat(1, 1, frames, 1, 1)
    mask = torch.zeros_like(video[:, :1])
    mask[:, :, 0] = 1
    return Known(video, mask, release=None)


def _guided(system: System, request: Request, on_event: OnEvent) -> Denoiser:
    """The system's guided denoiser."""
    nothing = torch.zeros(request.shape.bcthw)
    conditions = system.condition(request, Canvas(nothing, nothing[:, :1]), on_event)
    guidance = system.guidance(request)
    return Guided({name: system.denoiser(conditions.branches[name]) for name in guidance.branches}, guidance)


def _sample(system: System, denoise: Denoiser, request: Request, noise: Noise, known: Known | None = None) -> Tensor:
    options, levels = system.sampler_options(request), system.levels(request)
    first = noise.normal(request.shape.bcthw[1:]).to(system.device)
    over = Overwrite([] if known is None else [known], levels, noise, first)
    denoise, z_BCTHW = over.around(denoise), over.start(system.prior(first))
    z_BCTHW = SAMPLERS[request.sampler or ""](denoise, z_BCTHW, levels, noise=noise, state=over.run(), **options)
    return system.decode(z_BCTHW)
