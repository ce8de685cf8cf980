"""A request with every choice made: the task's defaults, then the model's, a seed; or refused, by name.

Nothing is read here but the headers of media: no pixel and no weight.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import cast

import torch

from kinema import registry, spans
from kinema.diffusion import samplers
from kinema.diffusion.freeinit import FreeInit
from kinema.diffusion.samplers import SAMPLERS
from kinema.diffusion.schedules import edit_steps
from kinema.events import Note, OnEvent, ignore
from kinema.renamed import renamed
from kinema.schema import FREE_INIT, TAKES, BadRequest, Request
from kinema.system import System
from kinema.tasks import TASKS
from kinema.tasks.known import need_prompt
from kinema.values import quoted

OF_WINDOWS = ("window_places", "window_weights", "window_stride", "window_in", "noise_type")


def settle(system: System, request: Request, on_event: OnEvent = ignore) -> Request:
    """The request with the task's and the model's defaults and a seed: nothing is ``None`` that matters.

    Refuses what the verb makes no use of: nothing that is asked for is passed over. A settled request is itself again.
    """
    request, notes = renamed(request)
    for note in notes:
        on_event(Note(note))
    if request.task not in TASKS:
        raise BadRequest(f"there is no task {request.task!r}; expected one of {', '.join(TASKS)}")
    blank = Request()
    for name in sorted({field for taken in TAKES.values() for field in taken} - set(TAKES[request.task])):
        if getattr(request, name) != getattr(blank, name):
            raise BadRequest(f"{request.task} makes no use of {name}: leave it out")
    if request.task in ("generate", "edit") and system.family.sampling.defaults(system.config).takes_prompt:
        need_prompt(request)
    request = with_defaults(system, TASKS[request.task].plan(request), on_event)
    if request.loop and request.task == "generate" and not (request.window and request.window < request.shape.frames):
        raise BadRequest("generate makes a loop of windows that wrap around: give a window shorter than the clip")
    in_blocks = rolls_out(system, replace(request, frames=system.lattice.grid.time.ceil(request.shape.frames)))
    if request.overlap is not None and request.window is None and not in_blocks:
        raise BadRequest("overlap is of windows, or of the blocks of a clip longer than the model: leave it out")
    check_length(request)
    if request.super_resolution_weight != blank.super_resolution_weight and request.task != "upscale":
        if request.super_resolution is None:
            raise BadRequest("super_resolution_weight goes with super_resolution, or with upscale: leave it out")
    check_prompts(system, request, in_blocks=in_blocks)
    if request.colours != "free" and request.task in ("generate", "edit") and not in_blocks:
        raise BadRequest("colours are of given frames, or of a clip longer than the model: leave it out")
    sampler_options(system, request)
    free_init(system, request)
    if request.task == "edit" and request.strength > 0 and not edit_steps(cast(int, request.steps), request.strength):
        what = f"strength {request.strength:g} of {request.steps} steps is less than one step"
        on_event(Note(f"{what}, so nothing is changed: give more steps or a higher strength"))
    if request.seed is None:
        request = replace(request, seed=secrets.randbelow(2**31))
    return request


def with_defaults(system: System, request: Request, on_event: OnEvent = ignore) -> Request:
    """The request with the model's own defaults and its sides on the model's lattice, saying what moved.

    Frames stay as asked: a clip is made at the lattice's next frame count and cut. Raises BadRequest for
    what the family cannot do; needs no weights.
    """
    own, lattice = system.family.sampling.defaults(system.config), system.lattice
    for note in system.notes:
        on_event(Note(note))

    def snapped(what: str, asked: int, made: int) -> int:
        if asked != made:
            on_event(Note(f"{what} {asked} snapped to {made}, the nearest that {system.name} can make"))
        return made

    height, width, window = request.height or own.height, request.width or own.width, request.window
    if window is not None:
        window = snapped("window", window, lattice.grid.time.ceil(window))
        if lattice.max_frames and window > lattice.max_frames:
            raise BadRequest(f"window is {window} frames; {system.name} sees at most {lattice.max_frames} at once")
        if request.overlap is not None and request.overlap >= window:
            raise BadRequest(f"overlap is {request.overlap} frames of a window of {window}; expected fewer")
    if request.window_in == "attention" and not own.attention_windows:
        raise BadRequest(f"the attention over time of {system.name} does not work in windows: leave window_in out")
    sampler = request.sampler or own.sampler
    if sampler not in SAMPLERS:
        raise BadRequest(registry.unknown("sampler", sampler, SAMPLERS))
    silent = request.guidance is None and request.guidance_end is None
    request = replace(
        request,
        frames=request.frames or own.frames,
        window=window,
        height=snapped("height", height, lattice.snap_side(height)),
        width=snapped("width", width, lattice.snap_side(width)),
        fps=request.fps or own.fps,
        steps=request.steps or own.steps,
        sampler=sampler,
        guidance=own.guidance if request.guidance is None else request.guidance,
        guidance_end=own.guidance_end if silent else request.guidance_end,
        guidance_interval=request.guidance_interval or own.guidance_interval,
    )
    system.family.sampling.check(system.config, request)
    return request


def sampler_options(system: System, request: Request) -> dict[str, float]:
    """The request's options of its sampler over the model's own; one the sampler does not take is refused."""
    own = system.family.sampling.defaults(system.config)
    name = request.sampler or own.sampler
    told = dict(request.sampler_options) | ({} if request.eta is None else {"eta": request.eta})
    known = samplers.options(name)
    for option, value in told.items():
        if option not in known:
            raise BadRequest(f"sampler {name} takes no {option}; it takes {', '.join(known) or 'no options'}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise BadRequest(f"{option} of the sampler is {quoted(value)}; expected a number, 0 or more")
    return {**(own.options if name == own.sampler else {}), **told}


def rolls_out(system: System, request: Request) -> bool:
    """Whether the clip is longer than the model sees and is made block by block."""
    longest = system.lattice.max_frames
    return bool(longest) and request.shape.frames > cast(int, longest) and request.window is None


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


def check_prompts(system: System, request: Request, *, in_blocks: bool) -> None:
    """Refuse prompts over frames that are damaged, or where nothing can change with them."""
    spans.check(request)
    own = system.family.sampling.defaults(system.config)
    if not request.prompt_spans or own.prompt_spans:
        return
    if not own.takes_prompt:
        raise BadRequest(f"{system.name} takes no prompt: leave prompt_spans out")
    if not in_blocks and not in_windows(request):
        most = f" for up to {longest} frames" if (longest := system.lattice.max_frames) else ""
        raise BadRequest(
            f"{system.name} sees the clip at once, under one prompt{most}: give a window shorter than the clip to "
            "change the prompt over its frames, or leave prompt_spans out"
        )


def in_windows(request: Request) -> bool:
    """Whether the network sees a part of the clip at a time."""
    window = request.window
    return window is not None and request.window_in == "denoiser" and window < request.shape.frames


def free_init(system: System, request: Request) -> FreeInit | None:
    """What makes the noise of the next pass, where the request has several."""
    if request.free_init is None:
        return None
    end = system.process(request).schedule.level(torch.ones(1, dtype=torch.float64))
    return FreeInit(end, request.free_init_filter, request.free_init_order, request.free_init_stop)
