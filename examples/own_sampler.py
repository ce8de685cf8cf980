"""A sampler is one function over a denoiser: write one, and every family can use it.

Run: python examples/own_sampler.py [model]. It compares a midpoint method with Euler at equal network calls.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

import kinema
from kinema.diffusion.noise import Noise
from kinema.diffusion.parameterise import Denoiser, eps_from_x0
from kinema.diffusion.samplers import SAMPLERS, OnStep, State, free
from kinema.diffusion.schedules import NoiseLevel


@torch.no_grad()
def midpoint(
    denoise: Denoiser,
    z: Tensor,
    levels: NoiseLevel,
    *,
    noise: Noise,  # noqa: ARG001 (every sampler has it; this one draws nothing)
    on_step: OnStep | None = None,
    state: State = free,
) -> Tensor:
    """The explicit midpoint rule on the straight path: ``y' = eps - x0`` for ``y = z / (alpha + sigma)`` along
    ``s = sigma / (alpha + sigma)``, a form that every process takes. Two levels of the list make one step, and
    ``state`` writes what is known of the clip over each of them."""
    z = state(z, 0)
    total = (len(levels) - 1) // 2
    for i in range(total):
        start, middle, end = (levels[2 * i + k].batch(len(z)) for k in range(3))
        x0 = denoise(z, start)
        half = state(middle.add_noise(x0, eps_from_x0(x0, z, start)), 2 * i + 1)
        x0 = denoise(half, middle)
        slope = eps_from_x0(x0, half, middle) - x0
        scales = [sum(level.like(z)) for level in (start, end)]
        places = [level.like(z)[1] / scale for level, scale in zip((start, end), scales, strict=True)]
        z = state(scales[1] * (z / scales[0] + (places[1] - places[0]) * slope), 2 * i + 2)
        if on_step:
            on_step(i + 1, total, end, x0)
    return z


def main(model_name: str = "zoetrope") -> float:
    SAMPLERS["midpoint"] = midpoint
    name, _, preset = model_name.partition("/")
    model = kinema.load(name, preset=preset or None)
    ask = {"prompt": "a red ball rolls right", "seed": 1, "guidance": 1.0}
    best = model.generate(**ask, steps=64, sampler="euler").video
    ours = model.generate(**ask, steps=8, sampler="midpoint").video
    euler = model.generate(**ask, steps=8, sampler="euler").video
    ratio = float((ours - best).square().mean() / (euler - best).square().mean().clamp(min=1e-12))
    sys.stdout.write(f"squared distance to 64 Euler steps, midpoint over Euler at 8 calls: {ratio:.2f}\n")
    return ratio


if __name__ == "__main__":
    main(*sys.argv[1:])
