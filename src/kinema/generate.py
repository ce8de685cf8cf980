"""The page to read first: from a request to a clip, and the object `kinema.load` returns.

Families and tasks meet here and nowhere else. Shapes: pixels B×3×T×H×W in [-1, 1], latents B×C×T×h×w.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from kinema.diffusion.freeinit import FreeInit, passes
from kinema.diffusion.guidance import Guidance, Guided, Reconstruction, Thresholded
from kinema.diffusion.noise import Noise, rescheduled
from kinema.diffusion.overwrite import Known, Overwrite
from kinema.diffusion.parameterise import Denoiser
from kinema.diffusion.samplers import SAMPLERS, OnStep
from kinema.diffusion.schedules import Level, edit_steps
from kinema.diffusion.windows import Windowed, window_sizes
from kinema.media.matching import match_colours
from kinema.media.sound import carried
from kinema.memory.free import parse_bytes
from kinema.memory.placing import place, roomy
from kinema.memory.plan import Plan, choose
from kinema.memory.turns import LEVELS
from kinema.recipe import frames_hash, recipe
from kinema.registry import unknown
from kinema.schema import (
    FREE_INIT,
    TAKES,
    BadRequest,
    Canvas,
    Clip,
    Event,
    Memory,
    Note,
    OnEvent,
    Phase,
    Request,
    Step,
    TaskName,
    ignore,
)
from kinema.system import Conditions, MemoryOptions, System, open_system
from kinema.tasks import TASKS
from kinema.tasks.known import need_prompt

OnSettled = Callable[[Request], None]


def accept(_request: Request) -> None:
    """The check that everything passes."""


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
    cannot do, before its weights are read.
    """
    request, whole, canvas = prepared(system, request, on_event, on_settled)
    asked = request.shape.frames
    in_blocks = honour(system, request, canvas) == "continuation" or rolls_out(system, whole)
    plan = planned(system, whole, canvas)
    for reason in (*plan.reasons, *about_precision(system)):
        on_event(Note(reason))
    request, whole = plan.applied(request), plan.applied(whole)
    made_by = recipe(system, request, noise)  # inputs are hashed before the work, as they are now
    made_by["halves_at_once"] = plan.at_once
    draws = system.noise(request)
    shape = system.latent_shape(whole).bcthw
    if noise is not None and tuple(noise.shape) != shape:
        raise BadRequest(f"noise has shape {tuple(noise.shape)}; {system.name} expects {shape} for this request")
    if in_blocks and output == "latents":
        raise BadRequest("a clip made in blocks has no latents of its own; ask for a window or fewer frames")
    fps = cast(float, request.fps)
    sound = carried(canvas.heard, asked / fps, on_event)
    on_event(Phase("load", system.name))
    system.begin_hash()  # beside the work; files that are gone are told now
    place(system, plan)
    with torch.no_grad():
        if in_blocks:
            video = roll_out(system, whole, canvas, noise, draws, on_event)
        else:
            noise = draws.normal(shape[1:]) if noise is None else noise
            z = sample(system, whole, canvas, noise, draws, on_event=on_event)
            if output == "latents":
                return Clip(z, fps, made_by | {"weights": system.weights_hash})
            on_event(Phase("decode"))
            video = system.decode(z, whole)
            video = match_colours(video, canvas, request.colours)
    video = torch.lerp(video, canvas.video, canvas.mask.expand_as(video))  # what was given stays, to the bit
    video = video[:, :, -asked:] if request.backward else video[:, :, :asked]
    on_event(Memory(_peak_bytes()))
    made_by |= {"weights": system.weights_hash, "frames_hash": frames_hash(video)}
    return Clip(video, fps, made_by, sound)


def prepared(
    system: System, request: Request, on_event: OnEvent = ignore, on_settled: OnSettled = accept
) -> tuple[Request, Request, Canvas]:
    """The settled request, the same with the frames that the model makes, and the canvas of these."""
    request = settle(system, request, on_event)
    on_settled(request)
    canvas = TASKS[request.task].canvas(request, on_event)
    return (request, *on_lattice(system, request, canvas))


def settle(system: System, request: Request, on_event: OnEvent = ignore) -> Request:
    """The request with the task's and the model's defaults and a seed: nothing is ``None`` that matters.

    Refuses what the verb makes no use of: nothing that is asked for is passed over.
    """
    if request.task not in TASKS:
        raise BadRequest(f"there is no task {request.task!r}; expected one of {', '.join(TASKS)}")
    blank = Request()
    for name in sorted({field for taken in TAKES.values() for field in taken} - set(TAKES[request.task])):
        if getattr(request, name) != getattr(blank, name):
            raise BadRequest(f"{request.task} makes no use of {name}: leave it out")
    if request.task in ("generate", "edit") and system.family.takes_prompt(system.config):
        need_prompt(request)
    request = system.settle(TASKS[request.task].plan(request), on_event)
    if request.loop and request.task == "generate" and not (request.window and request.window < request.shape.frames):
        raise BadRequest("generate makes a loop of windows that wrap around: give a window shorter than the clip")
    whole = replace(request, frames=system.lattice.time.ceil(request.shape.frames))
    if request.overlap is not None and request.window is None and not rolls_out(system, whole):
        raise BadRequest("overlap is of windows, or of the blocks of a clip longer than the model: leave it out")
    check_length(request)
    if request.colours != "free" and request.task in ("generate", "edit") and not rolls_out(system, whole):
        raise BadRequest("colours are of given frames, or of a clip longer than the model: leave it out")
    system.sampler_options(request)
    free_init(system, request)
    if request.task == "edit" and request.strength > 0 and not edit_steps(cast(int, request.steps), request.strength):
        what = f"strength {request.strength:g} of {request.steps} steps is less than one step"
        on_event(Note(f"{what}, so nothing is changed: give more steps or a higher strength"))
    if request.seed is None:
        request = replace(request, seed=secrets.randbelow(2**31))
    return request


OF_WINDOWS = ("window_places", "window_weights", "window_stride", "window_in", "noise_type")


def check_length(request: Request) -> None:
    """Refuse options of windows or FreeInit where there is none of them, or that do not go together."""
    blank = Request()
    for whole, parts in (("window", OF_WINDOWS), ("free_init", FREE_INIT[1:])):
        for name in parts if getattr(request, whole) is None else ():
            if getattr(request, name) != getattr(blank, name):
                raise BadRequest(f"{name} is of a {whole}: give one, or leave it out")
    if request.window_stride > 1 and request.window_places != "uniform":
        raise BadRequest("window_stride is of windows that move: give window_places uniform, or leave it out")
    if request.window_in == "attention" and request.window_places != "static":
        raise BadRequest("windows inside attention stay where they are: leave window_places out")


def on_lattice(system: System, request: Request, canvas: Canvas) -> tuple[Request, Canvas]:
    """The request and canvas at the next frame count that the model makes; what is beyond the asked is unknown."""
    frames = system.lattice.time.ceil(request.shape.frames)
    more = frames - request.shape.frames
    return replace(request, frames=frames), longer(canvas, more, before=request.backward)


def longer(canvas: Canvas, more: int, *, before: bool = False) -> Canvas:
    """The canvas with so many unknown frames more behind it, or before it."""
    if more <= 0:
        return canvas
    ends = (more, 0) if before else (0, more)

    def padded(x: Tensor, mode: str) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, *ends), mode=mode)

    source = None if canvas.source is None else padded(canvas.source, "replicate")
    return replace(canvas, video=padded(canvas.video, "constant"), mask=padded(canvas.mask, "constant"), source=source)


def honour(system: System, request: Request, canvas: Canvas, *, one_pass: bool = False) -> str:
    """How the canvas will be held: "native", "continuation", "reconstruction" or "replacement".

    Continuation goes on from the last given frame, as `roll_out` does: it is no way for ``one_pass`` of the sampler.
    Refuses, by name, a canvas the family cannot hold, or a way that it does not offer.
    """
    ways = system.family.honours(system.config, canvas.kind)
    if one_pass or request.window is not None:
        ways = tuple(way for way in ways if way != "continuation")
    if not ways:
        what = f"a canvas of the kind {canvas.kind!r}"
        raise BadRequest(f"{system.name} cannot hold {what} that this {request.task} needs")
    if request.honour == "auto" or canvas.empty:
        return ways[0]
    if request.honour not in ways:
        raise BadRequest(f"{system.name} does not hold a canvas by {request.honour}; it offers {', '.join(ways)}")
    return request.honour


def planned(system: System, request: Request, canvas: Canvas) -> Plan:
    """How the request will run within the memory there is; refuses one that cannot, before anything is loaded."""
    way = honour(system, request, canvas)
    if rolls_out(system, request):
        request, canvas = one_block(system, request, canvas)
        way = honour(system, request, canvas, one_pass=True)
    return choose(system, replace(request, honour=cast(Any, way)), canvas)


def one_block(system: System, request: Request, canvas: Canvas) -> tuple[Request, Canvas]:
    """A block of a clip made in blocks, as it is rehearsed: it holds the frames that it shares with the one before."""
    length = cast(int, system.lattice.max_frames)
    starts = block_starts(system, request, canvas, length)
    shared = length - abs(starts[1] - starts[0]) if len(starts) > 1 else 1
    mask = torch.zeros_like(canvas.mask[:, :, :length])
    mask[:, :, length - shared if starts[0] > starts[-1] else 0 :][:, :, :shared] = 1
    return of_block(request, length), Canvas(canvas.video[:, :, :length], mask)


def of_block(request: Request, length: int) -> Request:
    """The request of one block: it goes on by itself, so continuation is no way to hold its frames."""
    way = "auto" if request.honour == "continuation" else request.honour
    return replace(request, frames=length, loop=False, honour=cast(Any, way))


def about_precision(system: System) -> list[str]:
    if system.rounded is None:
        return []
    name = str(system.rounded).removeprefix("torch.")
    return [f"this processor has no units for {name}: weights are rounded to it, and computed with in float32"]


def sample(
    system: System,
    request: Request,
    canvas: Canvas,
    noise: Tensor,
    draws: Noise,
    *,
    guidance: Guidance | None = None,
    on_event: OnEvent = ignore,
) -> Tensor:
    """The sampler over the whole canvas, once or as often as FreeInit asks: latents B×C×T×h×w, in float32 always."""
    on_event(Phase("condition"))
    way = honour(system, request, canvas, one_pass=True)
    request = replace(request, honour=cast(Any, way))  # the family sees how its canvas is held
    conditions = system.condition(request, canvas, on_event)
    pieces = [] if way == "native" or canvas.empty else [given_piece(system, canvas)]
    held = (pieces[0], request.reconstruction_weight) if way == "reconstruction" and pieces else None
    guidance = system.family.guidance(system.config, request) or guidance or system.guidance(request)
    source = None if canvas.source is None else system.encode(canvas.source)
    first = z = in_order(system, request, noise, draws).to(system.device, torch.float32)
    again = free_init(system, request)
    counts = passes(request.free_init or 1, cast(int, request.steps), fast=request.free_init_fast)
    for number, steps in enumerate(counts):
        levels = system.levels(replace(request, steps=steps))
        noise = again(first, z, draws) if again is not None and number else first
        edited = [] if source is None else [edited_piece(source, canvas.strength, steps)]
        over = Overwrite([*edited, *pieces], levels, draws, noise)
        denoise = over.around(guide(system, conditions, request, guidance, levels, held))
        z = over.start(system.prior(noise))
        which = f", pass {number + 1} of {len(counts)}" if len(counts) > 1 else ""
        on_event(Phase("sample", f"{steps - over.first} steps of {request.sampler}{which}"))
        if over.first == steps:
            return z
        report = stepping(on_event, sum(counts[:number]), sum(counts[number + 1 :]))
        options = {**system.sampler_options(request), "state": over.run(over.first)}
        left = levels[over.first :]
        z = SAMPLERS[cast(str, request.sampler)](denoise, z, left, noise=draws, on_step=report, **options)
    return z


def given_piece(system: System, canvas: Canvas) -> Known:
    """What a canvas gives, on the latent grid: never released."""
    return Known(system.encode(canvas.video).float(), latent_mask(system, canvas.mask), release=None)


def edited_piece(source: Tensor, strength: float, steps: int) -> Known:
    """The clip of an edit, held until its last ``strength`` of the steps begin (SDEdit)."""
    return Known(source.float(), torch.ones_like(source[:, :1]), steps - edit_steps(steps, strength), "fixed")


def stepping(on_event: OnEvent, before: int, after: int) -> OnStep:
    """A sampler's steps as events, with those of the passes before and after it."""

    def on_step(index: int, total: int, level: Level, x0: Tensor) -> None:
        on_event(Step(before + index, before + total + after, float(level.log_snr[0]), x0))

    return on_step


def in_order(system: System, request: Request, noise: Tensor, draws: Noise) -> Tensor:
    """The noise of a clip, in the order over time that the request asks for."""
    if request.noise_type is None:
        return noise
    length, overlap = window_sizes(request, system.lattice)
    return rescheduled(noise, request.noise_type, length, length - overlap, draws)


def free_init(system: System, request: Request) -> FreeInit | None:
    """What makes the noise of the next pass, where the request has several."""
    if request.free_init is None:
        return None
    end = system.process.schedule.level(torch.ones(1, dtype=torch.float64))
    return FreeInit(end, request.free_init_filter, request.free_init_order, request.free_init_stop)


def guide(  # noqa: PLR0917
    system: System,
    conditions: Conditions,
    request: Request,
    guidance: Guidance,
    levels: Level,
    reconstructed: tuple[Known, float] | None = None,
) -> Denoiser:
    """The guided denoiser: guidance, reconstruction and bound, in windows where the request asks for them.

    ``reconstructed`` is what guidance by reconstruction is to bring out, and its weight.

    Reconstruction acts inside each window, so that a long clip is never differentiated as a whole.
    """
    limit = system.family.threshold(system.config)

    def make(frames: Sequence[int] | None) -> Denoiser:
        def cut(x: Tensor) -> Tensor:
            return x if frames is None else x[:, :, list(frames)]

        branches = {name: system.denoiser(conditions.branches[name], frames) for name in guidance.branches}
        denoise: Denoiser = Guided(branches, guidance.of(frames), roomy(system), levels)
        if reconstructed is not None and reconstructed[1]:
            piece, weight = reconstructed
            denoise = Reconstruction(denoise, cut(piece.content), cut(piece.mask), weight)
        return denoise if limit is None else Thresholded(denoise, limit)

    if request.window is None or request.window_in == "attention":
        return make(None)
    length, overlap = window_sizes(request, system.lattice)
    total, uniform = system.latent_shape(request).frames, request.window_places == "uniform"
    stride = request.window_stride
    return Windowed(make, total, length, overlap, request.window_weights, request.loop, uniform, stride)


def rolls_out(system: System, request: Request) -> bool:
    """Whether the clip is longer than the model sees and is made block by block."""
    longest = system.lattice.max_frames
    return bool(longest) and request.shape.frames > cast(int, longest) and request.window is None


def roll_out(
    system: System, request: Request, canvas: Canvas, noise: Tensor | None, draws: Noise, on_event: OnEvent
) -> Tensor:
    """A clip made block by block: each holds the last frames of the one before (VDM §3.1), or goes on from its last.

    Returns pixels: what one block made stays as it is in the next. Blocks run from where frames are known:
    backward when only the end of the canvas is given.
    """
    total, length = request.shape.frames, system.lattice.max_frames or request.shape.frames
    starts = block_starts(system, request, canvas, length)
    canvas = longer(canvas, max(starts) + length - total)
    known, mask, anchor = canvas.video.clone(), canvas.mask.clone(), canvas.first
    guidance = system.guidance(request)
    block = of_block(request, length)
    shape = system.latent_shape(block).bcthw
    for number, start in enumerate(starts):
        frames = slice(start, start + length)
        part = replace(canvas, video=known[:, :, frames], mask=mask[:, :, frames], anchor=anchor, start=start)
        if canvas.source is not None:
            part = replace(part, source=canvas.source[:, :, frames])
        elif part.kind == "all":
            continue
        on_event(Note(f"block {number + 1} of {len(starts)}: frames {start} to {min(start + length, total) - 1}"))
        at = system.lattice.time.latent(start)
        own = draws.normal(shape[1:]) if noise is None else noise[:, :, at : at + shape[2]]
        if own.shape[2] < shape[2]:  # the last block goes on beyond the clip, and the caller's noise does not
            own = torch.cat([own, draws.normal(shape[1:]).to(own)[:, :, own.shape[2] :]], dim=2)
        cut = guidance.of(range(at, at + shape[2]))
        z = sample(system, block, part, own, draws, guidance=cut, on_event=across(on_event, number, len(starts)))
        made = system.decode(z, block)
        anchor = made[:, :, 0] if anchor is None else anchor
        made = match_colours(made, replace(part, anchor=anchor), request.colours)
        known[:, :, frames] = torch.lerp(made, part.video, part.mask.expand_as(made))
        mask[:, :, frames] = 1
    return known[:, :, :total]


def across(on_event: OnEvent, number: int, count: int) -> OnEvent:
    """Tells the steps of block ``number`` of ``count`` as the whole clip's, so that the time to go is its own."""

    def told(event: Event) -> None:
        if isinstance(event, Step):
            event = replace(event, index=number * event.total + event.index, total=count * event.total)
        on_event(event)

    return told


def block_starts(system: System, request: Request, canvas: Canvas, length: int) -> list[int]:
    """First frames of the blocks of a clip, in the order they are made.

    A family that goes on from one frame shares that one, from the last that is given, and its last block may be longer
    than the clip; others share half their frames, or ``overlap``, and the last block ends with the clip.
    """
    total, honours = request.shape.frames, system.family.honours
    if request.honour == "continuation" and request.overlap not in (None, 1):
        raise BadRequest(f"overlap is {request.overlap}; continuation goes on from one frame")
    if request.overlap in (None, 1) and request.honour in ("auto", "native", "continuation"):
        given = int(canvas.mask.flatten(3).amin(-1).amin(0)[0].cumprod(0).sum())  # whole frames at the beginning
        ahead = canvas.kind in ("nothing", "first", "prefix") and "continuation" in honours(system.config, "prefix")
        if ahead:
            return list(range(max(given - 1, 0), total - 1, max(length - 1, 1)))
    keep = length // 2 if request.overlap is None else request.overlap
    if not 0 < keep < length:
        raise BadRequest(f"overlap is {keep} frames; blocks of {length} share 1 to {length - 1}")
    starts = [min(s, total - length) for s in range(0, total - keep, length - keep)]
    backward = bool(canvas.mask[:, :, -1].any()) and not bool(canvas.mask[:, :, 0].any())
    return starts[::-1] if backward else starts


def latent_mask(system: System, mask_B1THW: Tensor) -> Tensor:
    """The mask on the latent grid: 1 where every pixel of the cell is given."""
    (h, w), spans = system.lattice.stride, system.lattice.time.spans(mask_B1THW.shape[2])
    cells = torch.stack([mask_B1THW[:, :, span.start : span.stop].amin(2) for span in spans], dim=2)
    return -F.max_pool3d(-cells, (1, h, w)).to(system.device)


# -------------------------------------------------------------------------------------- memory


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


# --------------------------------------------------------------------------------------- verbs


@dataclass(frozen=True, eq=False)
class Model:
    """What `load` returns: a system with the six verbs. Every verb takes `Request`'s options by name."""

    system: System

    def run(
        self,
        request: Request,
        *,
        noise: Tensor | None = None,
        on_event: OnEvent = ignore,
        on_settled: OnSettled = accept,
        output: Literal["clip", "latents"] = "clip",
    ) -> Clip:
        """See `generate`."""
        return generate(self.system, request, noise=noise, on_event=on_event, on_settled=on_settled, output=output)

    def use_loras(self, loras: Mapping[str | Path, float]) -> None:
        """Have exactly these LoRA files in force, each with its weight; ``{}`` gives back the model's own weights."""
        self.system.use_loras(loras)

    def generate(self, prompt: str, *, on_event: OnEvent = ignore, **options: Any) -> Clip:
        """Text to video: ``model.generate("a red ball rolls right")``."""
        return self.run(_request("generate", prompt=prompt, **options), on_event=on_event)

    def animate(self, image: str | Path, prompt: str = "", *, on_event: OnEvent = ignore, **options: Any) -> Clip:
        """Image to video; ``last_image`` or ``loop`` fix the end too, ``region`` makes a cinemagraph."""
        return self.run(_request("animate", image=image, prompt=prompt, **options), on_event=on_event)

    def interpolate(self, video: str | Path | None = None, *, on_event: OnEvent = ignore, **options: Any) -> Clip:
        """Frames between those of a clip (``every``), or between ``image`` and ``last_image``."""
        return self.run(_request("interpolate", video=video, **options), on_event=on_event)

    def extend(self, video: str | Path, *, on_event: OnEvent = ignore, **options: Any) -> Clip:
        """More of a clip: ``frames`` counts the whole; ``backward`` leads to it; ``loop`` closes it."""
        return self.run(_request("extend", video=video, **options), on_event=on_event)

    def inpaint(self, video: str | Path, prompt: str = "", *, on_event: OnEvent = ignore, **options: Any) -> Clip:
        """New content in ``region`` or ``mask`` of a clip; ``outside`` of it for outpainting."""
        return self.run(_request("inpaint", video=video, prompt=prompt, **options), on_event=on_event)

    def edit(self, video: str | Path, prompt: str, *, on_event: OnEvent = ignore, **options: Any) -> Clip:
        """The clip changed to fit the prompt, as far as ``strength`` lets it."""
        return self.run(_request("edit", video=video, prompt=prompt, **options), on_event=on_event)


def _request(task: TaskName, **options: Any) -> Request:
    values: dict[str, Any] = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
    try:
        return Request(task=task, **values)
    except TypeError as error:
        raise BadRequest(f"{task} takes no such option: {str(error).split(') ')[-1]}") from None


def load(
    source: str | Path,
    *,
    variant: str | None = None,
    preset: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    offline: bool | None = None,
    overrides: Mapping[str, Any] | None = None,
    loras: Mapping[str | Path, float] | None = None,
    add: Mapping[str, str | Path] | None = None,
    offload: Literal["auto", "none", "model", "block", "sequential"] = "auto",
    memory: int | str | None = None,
    chunk_tokens: int | None = None,
) -> Model:
    """Open a model: "zoetrope" (embedded), an alias, a hub id, a folder or a file.

    ``preset`` builds an untrained one: ``load("vdm", preset="tiny")``. ``variant`` picks among the files of a
    folder ("fp16"), or says which published model the weights are ("svd-xt"), where they do not tell. ``loras`` are
    LoRA files and their weights: ``{"style.safetensors": 0.8}``; `Model.use_loras` changes them later.
    ``add`` are files in slots of the model, such as a motion module in an image model:
    ``{"motion": "mm_sd_v15_v2.ckpt"}``. ``memory`` is how much may be used, in bytes or as "8GiB" (most of
    what is free). ``offload`` has weights take turns where that saves memory: "model", "block" or "sequential"
    (`kinema.memory.turns`); "auto" when a request would not fit otherwise. ``chunk_tokens`` is how many feed-forward
    layers take at a time. Raises BadRequest for anything that is not a model we know.
    """
    if offload not in ("auto", *LEVELS):
        raise BadRequest(unknown("offload", offload, ("auto", *LEVELS)))
    if chunk_tokens is not None and chunk_tokens < 1:
        raise BadRequest(f"chunk_tokens is {chunk_tokens}; expected 1 or more")
    budget = parse_bytes(memory) if isinstance(memory, str) else memory
    if budget is not None and budget < 1:
        raise BadRequest(f"memory is {budget}; expected a number of bytes")
    return Model(
        open_system(
            source,
            variant=variant,
            preset=preset,
            dtype=dtype,
            device=device,
            offline=offline,
            overrides=overrides,
            loras=loras,
            add=add,
            memory=MemoryOptions(offload, budget, chunk_tokens),
        )
    )
