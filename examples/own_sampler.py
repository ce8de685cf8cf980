"""A sampler is one function that calls a denoiser: write one, and every family can use it.

Run: python examples/own_sampler.py [model]. Compares a midpoint method with Euler at the same number of network calls.
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
    noise: Noise,  # noqa: ARG001 (every sampler takes it; this one is deterministic)
    on_step: OnStep | None = None,
    state: State = free,
) -> Tensor:
    """The explicit midpoint rule for ``y' = eps - x0`` with ``y = z / (alpha + sigma)`` along
    ``s = sigma / (alpha + sigma)``, a form that holds for every process. One step covers two intervals of ``levels``;
    ``state`` writes the known pixels into each intermediate state."""
    z = state(z, 0)
    total = (len(levels) - 1) // 2
    for i in range(total):
        start, middle, end = (levels[2 * i + k].batch(len(z)) for k in range(3))
        x0 = denoise(z, start)
        half = state(middle.add_noise(x0, eps_from_x0(x0, z, start)), 2 * i + 1)
        x0 = denoise(half, middle)
        slope = eps_from_x0(x0, half, middle) - x0
        scales = [sum(level.like(z)) for level in (start, end)]
        positions = [level.like(z)[1] / scale for level, scale in zip((start, end), scales, strict=True)]
        z = state(scales[1] * (z / scales[0] + (positions[1] - positions[0]) * slope), 2 * i + 2)
        if on_step:
            on_step(i + 1, total, end, x0)
    return z


def main(model_name: str = "zoetrope") -> float:
    SAMPLERS["midpoint"] = midpoint
    name, _, preset = model_name.partition("/")
    model = kinema.load(name, preset=preset or None)
    request = {"prompt": "a red ball rolls right", "seed": 1, "guidance": 1.0}
    best = model.generate(**request, steps=64, sampler="euler").video
    mid = model.generate(**request, steps=8, sampler="midpoint").video
    euler = model.generate(**request, steps=8, sampler="euler").video
    ratio = float((mid - best).square().mean() / (euler - best).square().mean().clamp(min=1e-12))
    sys.stdout.write(f"squared error against 64 Euler steps at 8 calls, midpoint / Euler: {ratio:.2f}\n")
    return ratio


if __name__ == "__main__":
    main(*sys.argv[1:])
