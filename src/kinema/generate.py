"""The page to read first: from a request to a clip.

    request ─ job ────────────── settled, drawn, planned: refused here, before a weight is read
       │
    runtime.running ──────────── the weights placed, one job at a time
       │
    guide.sample ─────────────── conditions, guidance, windows, sampling   ┐ once, or once a block (rollout)
    system.decode ────────────── pixels                                    ┘
       │
    clip ─────────────────────── what was given, to the bit; recipe, sound

Families and tasks meet here and nowhere else. Shapes: pixels B×3×T×H×W in [-1, 1], latents B×C×T×h×w.
"""

from __future__ import annotations

import sys
from typing import Literal

import torch
from torch import Tensor

from kinema.guide import sample
from kinema.job import OnSettled, accept, made_definite
from kinema.media.matching import match_colours
from kinema.media.sound import carried
from kinema.memory.placing import place
from kinema.provenance import frames_hash, recipe
from kinema.rollout import roll_out
from kinema.schema import BadRequest, Clip, Memory, OnEvent, Phase, Request, ignore
from kinema.system import System


def generate(
    system: System,
    request: Request,
    *,
    noise: Tensor | None = None,
    on_event: OnEvent = ignore,
    on_settled: OnSettled = accept,
    output: Literal["clip", "latents"] = "clip",
) -> Clip:
    """Answer a request: canvas, conditioning, noise, sampling, decoding.

    ``noise`` is standard normal of the latent shape (B, C, T, h, w), instead of the seed's. ``output="latents"``
    returns the latents in the clip's ``video``. ``on_settled`` is called with the settled request, of which size and
    rate are the clip's, before anything is read: what it raises ends the work. Raises BadRequest for what the model
    cannot do, before its weights are read. Other threads that ask the same system wait for their turn.
    """
    with system.runtime.running():
        job = made_definite(system, request, on_event, on_settled)
        if noise is not None and tuple(noise.shape) != job.latent:
            raise BadRequest(f"noise has shape {tuple(noise.shape)}; this request to {system.name} needs {job.latent}")
        if job.in_blocks and output == "latents":
            raise BadRequest("block-wise clips cannot return latents; ask for a window or fewer frames")
        made_by = recipe(system, job.request, noise)  # inputs are hashed before the work, as they are now
        made_by["halves_at_once"] = job.plan.at_once
        sound = carried(job.canvas.heard, job.seconds, on_event)
        on_event(Phase("load", system.name))
        system.begin_hash()  # beside the work; files that are gone are told now
        place(system, job.plan)
        draws = system.noise(job.request)
        with torch.no_grad():
            if job.in_blocks:
                video = roll_out(system, job.whole, job.canvas, noise, draws, on_event)
            else:
                noise = draws.normal(job.latent[1:]) if noise is None else noise
                z = sample(system, job.whole, job.canvas, noise, draws, on_event=on_event)
                if output == "latents":
                    return Clip(z, job.fps, made_by | {"weights": system.weights_hash})
                on_event(Phase("decode"))
                video = match_colours(system.decode(z, job.whole), job.canvas, job.request.colours)
        video = job.finished(video)
        on_event(Memory(_peak_bytes()))
        made_by |= {"weights": system.weights_hash, "frames_hash": frames_hash(video)}
        return Clip(video, job.fps, made_by, sound)


def _peak_bytes() -> int:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return _resident_peak()


def _resident_peak() -> int:
    """The process's peak resident memory; 0 where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
