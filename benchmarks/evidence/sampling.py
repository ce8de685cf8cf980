"""Sample the arms of the figure, and render the real clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.evidence import protocol
from benchmarks.evidence.protocol import ARMS
from benchmarks.measuring import rendered
from kinema.canvas import Canvas, Piece, Release
from kinema.evaluation.sampling import Sampling
from kinema.schema import Shape
from kinema.system import System

APART = 1000
"""Between the seeds of neighbouring frames of a clip; more than there are prompts."""


def clips(arm: str, systems: Mapping[str, System], prompts: Sequence[str], seed: int) -> Tensor:
    """Clips B×3×T×H×W of an arm, one for each prompt; clip i has seed + i."""
    if arm == protocol.REAL:
        each = [rendered(p, seed + i, protocol.FRAMES, protocol.FPS, protocol.SIDE) for i, p in enumerate(prompts)]
        return torch.stack(each)
    system = systems[ARMS[arm].model]
    if arm == "video":
        return settings(system).clips(prompts, seed)
    if arm == "fresh":
        return settings(system, extra={"per_frame": True}).clips(prompts, seed)
    # A model of single frames with ddim is a function of its noise, so that equal noise gives equal frames.
    single = settings(system, frames=1, extra={"per_frame": True})
    first = single.clips(prompts, seed)
    if arm == "same":
        return first.expand(-1, -1, protocol.FRAMES, -1, -1)
    return chained(single, prompts, seed, first)


def chained(single: Sampling, prompts: Sequence[str], seed: int, first_BCTHW: Tensor) -> Tensor:
    """Every frame by SDEdit (Meng et al. 2022) from the frame before, with noise of its own."""
    frames = [first_BCTHW]
    for t in range(1, protocol.FRAMES):
        before = Piece(frames[-1], torch.ones_like(first_BCTHW[:, :1]), Release("strength", protocol.STRENGTH))
        canvas = Canvas(Shape.of(first_BCTHW), (before,))
        frames.append(single.clips(prompts, seed + t * APART, canvas))
    return torch.cat(frames, dim=2)


def settings(system: System, **different: Any) -> Sampling:
    """The protocol's sampling settings."""
    shared = {"sampler": protocol.SAMPLER, "steps": protocol.SAMPLING_STEPS, "guidance": protocol.GUIDANCE}
    return Sampling.of(system, **{**shared, **different})
