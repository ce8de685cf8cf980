"""A request made definite: defaults filled in, the canvas drawn, the blocks and the memory plan chosen; or refused.

Everything here is settled before a weight is read, and travels down from here: nothing below asks again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from kinema import spans
from kinema.diffusion.freeinit import FreeInit
from kinema.diffusion.schedules import edit_steps
from kinema.memory.plan import Plan, choose
from kinema.renamed import renamed
from kinema.schema import FREE_INIT, TAKES, BadRequest, Canvas, Note, OnEvent, Request, ignore
from kinema.system import System
from kinema.tasks import TASKS
from kinema.tasks.known import need_prompt

OnSettled = Callable[[Request], None]


def accept(_request: Request) -> None:
    """The check that everything passes."""


@dataclass(frozen=True, eq=False)
class Job:
    """A request settled once. ``request`` is what was asked for, ``whole`` the same with the frames that are made."""

    request: Request
    whole: Request
    canvas: Canvas
    """Of ``whole``."""
    latent: tuple[int, int, int, int, int]
    """B×C×T×h×w."""
    in_blocks: bool
    plan: Plan
    """How it runs within the memory there is."""

    @property
    def fps(self) -> float:
        return cast(float, self.request.fps)

    @property
    def seconds(self) -> float:
        return self.request.shape.frames / self.fps

    def finished(self, video_BCTHW: Tensor) -> Tensor:
        """The frames that were asked for, with what was given in them as it was, to the bit."""
        asked, given = self.request.shape.frames, self.canvas
        video = torch.lerp(video_BCTHW, given.video, given.mask.expand_as(video_BCTHW))
        return video[:, :, -asked:] if self.request.backward else video[:, :, :asked]


def made_definite(
    system: System, request: Request, on_event: OnEvent = ignore, on_settled: OnSettled = accept
) -> Job:
    """The job of a request, with each choice said. Raises BadRequest for what cannot be done; no weight is read.

    The LoRAs that it asks for are in force after it: they belong to the job, and the caller holds the runtime's lock.
    """
    system.runtime.use_loras(None if request.loras is None else system.read_loras({**request.loras}))
    request, whole, canvas = prepared(system, request, on_event, on_settled)
    in_blocks = honour(system, request, canvas) == "continuation" or rolls_out(system, whole)
    plan = planned(system, whole, canvas)
    for reason in (*plan.reasons, *about_precision(system)):
        on_event(Note(reason))
    request, whole = plan.applied(request), plan.applied(whole)
    return Job(request, whole, canvas, system.latent_shape(whole).bcthw, in_blocks, plan)


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
    request = system.settle(TASKS[request.task].plan(request), on_event)
    spans.check(request)
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


def free_init(system: System, request: Request) -> FreeInit | None:
    """What makes the noise of the next pass, where the request has several."""
    if request.free_init is None:
        return None
    end = system.process.schedule.level(torch.ones(1, dtype=torch.float64))
    return FreeInit(end, request.free_init_filter, request.free_init_order, request.free_init_stop)


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
    ways = system.family.sampling.honours(system.config, canvas.kind)
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


def rolls_out(system: System, request: Request) -> bool:
    """Whether the clip is longer than the model sees and is made block by block."""
    longest = system.lattice.max_frames
    return bool(longest) and request.shape.frames > cast(int, longest) and request.window is None


def block_starts(system: System, request: Request, canvas: Canvas, length: int) -> list[int]:
    """First frames of the blocks of a clip, in the order they are made.

    A family that goes on from one frame shares that one, from the last that is given, and its last block may be longer
    than the clip; others share half their frames, or ``overlap``, and the last block ends with the clip.
    """
    total, honours = request.shape.frames, system.family.sampling.honours
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


def about_precision(system: System) -> list[str]:
    if system.rounded is None:
        return []
    name = str(system.rounded).removeprefix("torch.")
    return [f"this processor has no units for {name}: weights are rounded to it, and computed with in float32"]
