"""Which models make a clip, and what each of them is asked for: a small clip, then its super-resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from kinema.canvas import Block
from kinema.events import Event, Note, OnEvent, ignore
from kinema.grid import Lattice
from kinema.media.timing import RATES
from kinema.schema import TAKES, BadRequest, Request
from kinema.settle import in_windows, rolls_out, settle
from kinema.system import MemoryOptions, System, open_system
from kinema.tasks.upscale import factor

Stages = Literal["base", "super-resolution"]


@dataclass(frozen=True)
class Upscaling:
    """How a stage enlarges the clip of the one before: ``factor`` times the sides, ``every`` times the frames.

    ``weight`` is that of guidance by the small clip (w_r of VDM, section 3.1).
    """

    factor: int
    every: int
    weight: float


@dataclass(frozen=True, eq=False)
class SettledStage:
    """One stage, of which only the request is settled."""

    name: Stages
    system: System
    request: Request
    enlarging: Upscaling | None = None


@dataclass(frozen=True)
class ReplayedStage:
    """One stage of a recipe: its request, settled and with files that are here, and its blocks where they are told."""

    request: Request
    blocks: tuple[Block, ...] = ()


def stages_of(system: System, request: Request, on_event: OnEvent = ignore) -> list[SettledStage]:
    """The stages of a request: one, or a small clip and its super-resolution.

    What is asked for is the finished clip: its size, frames and rate are the second stage's. ``overlap`` is of the
    first stage's blocks; those of the second meet in one frame.
    """
    if request.super_resolution is None or "super_resolution" not in TAKES.get(request.task, ()):
        if request.task == "generate" and request.every is not None:
            raise BadRequest("every goes with super_resolution, whose model makes the frames in between: give both")
        return [_alone(system, settle(system, request, on_event))]
    said = NotesOnce(on_event)
    upper, every = beside(system, request.super_resolution), _every(request)
    factor = _factor(system, upper)
    if request.prompt_spans and every > 1:
        raise BadRequest("prompt_spans and every do not go together: leave one of them out")
    base = settle(system, _small(system, upper, request, factor), said)
    fps = cast(float, base.fps) * every
    if not RATES[0] <= fps <= RATES[1]:
        raise BadRequest(f"every {every} makes {fps:g} fps of the {base.fps:g} of the first stage; use a smaller one")
    large = _large(system, upper, request, said).with_(
        seed=base.seed,
        height=factor * base.shape.height,
        width=factor * base.shape.width,
        frames=request.frames or every * base.shape.frames,
        fps=fps,
    )
    for what in ("height", "width"):
        if (wanted := getattr(request, what)) not in (None, made := getattr(large, what)):
            said(Note(f"{what} {wanted} snapped to {made}, the nearest that both models can make"))
    settled = settle(upper, large, said)
    if (settled.height, settled.width) != (large.height, large.width):
        raise BadRequest(f"{upper.name} cannot make {large.width}×{large.height}; ask for another size")
    enlarging = Upscaling(factor, every, request.super_resolution_weight)
    return [SettledStage("base", system, base), SettledStage("super-resolution", upper, settled, enlarging)]


def replayed(system: System, recorded: Sequence[ReplayedStage], on_event: OnEvent = ignore) -> list[SettledStage]:
    """The stages of a recipe. They are settled already; what somebody else wrote is checked again."""
    on_event = NotesOnce(on_event)
    base = settle(system, recorded[0].request, on_event)
    parts = [_alone(system, base)]
    for each in recorded[1:]:
        upper, every = beside(system, str(each.request.super_resolution)), _every(each.request)
        large, factor = settle(upper, each.request, on_event), _factor(system, upper)
        b, _, t, h, w = base.shape.bcthw
        if (b, factor * h, factor * w) != (large.clips, large.height, large.width) or t != math.ceil(
            cast(int, large.frames) / every
        ):
            raise BadRequest("the recipe is damaged: its second stage does not enlarge the clip of the first")
        parts.append(
            SettledStage("super-resolution", upper, large, Upscaling(factor, every, large.super_resolution_weight))
        )
    return parts


def _alone(system: System, request: Request) -> SettledStage:
    """The only stage of a request, or the first: super-resolution where a clip that there is becomes larger."""
    if request.task != "upscale":
        return SettledStage("base", system, request)
    if not system.family.sampling.defaults(system.config).enlarges:
        raise BadRequest(f"{system.name} cannot enlarge a clip; vdm models and zoetrope can")
    enlarging = Upscaling(factor(request), request.every or 1, request.super_resolution_weight)
    return SettledStage("super-resolution", system, request, enlarging)


class NotesOnce:
    """A listener that hears each note once, though two stages say it."""

    def __init__(self, on_event: OnEvent) -> None:
        self.on_event = on_event
        self.said: set[str] = set()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note):
            if event.message in self.said:
                return
            self.said.add(event.message)
        self.on_event(event)


def _every(request: Request) -> int:
    """How many frames the finished clip has for each of the first stage's."""
    return (request.every or 1) if request.task == "generate" else 1


def _small(system: System, upper: System, request: Request, factor: int) -> Request:
    """What the first stage is asked for."""
    every = _every(request)
    return replace(
        request,
        super_resolution=None,
        super_resolution_weight=Request().super_resolution_weight,
        every=None if request.task == "generate" else request.every,
        height=_side(request.height, system.lattice, upper.lattice, factor),
        width=_side(request.width, system.lattice, upper.lattice, factor),
        frames=None if request.frames is None else math.ceil(request.frames / every),
        fps=None if request.fps is None else max(request.fps / every, RATES[0]),
    )


def _side(asked: int | None, small: Lattice, large: Lattice, factor: int) -> int | None:
    """The first stage's side for a finished one: the nearest that both models can make."""
    if asked is None:
        return None
    step = small.side_multiple
    middle = small.snap_side(max(round(asked / factor), 1))
    reach = range(-large.side_multiple, large.side_multiple + 1)
    sides = [side for away in reach if (side := middle + away * step) > 0 and small.snap_side(side) == side]
    sides = [side for side in sides if large.snap_side(factor * side) == factor * side]
    if not sides:
        raise BadRequest(f"the two models have no side in common near {asked}; ask for another size")
    return min(sides, key=lambda side: (abs(factor * side - asked), -side))


def _large(system: System, upper: System, request: Request, on_event: OnEvent) -> Request:
    """What the second stage is asked for, before sizes: without what only the first model knows."""
    own, changes = upper.family.sampling.defaults(upper.config), dict[str, Any](loras=None, overlap=None)
    if upper.family.name != system.family.name:
        changes["extra"] = {}  # options of the other family
    if not own.takes_prompt:
        changes |= {"prompt": "", "negative_prompt": "", "prompt_spans": {}, "guidance": None, "guidance_end": None}
    longest, window = upper.lattice.max_frames, request.window
    if window is not None and longest is not None and upper.lattice.grid.time.ceil(window) > longest:
        blank = Request()
        names = ("window", "window_places", "window_weights", "window_stride", "window_in", "noise_type", "loop")
        changes |= {name: getattr(blank, name) for name in names}
        on_event(Note(f"{upper.name} sees {longest} frames at once: the second stage is made in blocks, not windows"))
    large = replace(request, **changes)
    if large.prompt_spans and not own.prompt_spans and not _parted(upper, large):
        on_event(Note(f"{upper.name} sees the whole clip at once: the second stage has one prompt for all of it"))
        large = replace(large, prompt_spans={}, prompt=large.prompt or next(iter(large.prompt_spans.values())))
    return large


def _parted(upper: System, request: Request) -> bool:
    """Whether the second stage is made in windows or blocks."""
    sized = replace(request, frames=request.frames or 1, height=request.height or 1, width=request.width or 1)
    return in_windows(sized) or rolls_out(upper, sized)


def beside(system: System, name: str) -> System:
    """The model of the second stage, opened once, where and as precise as the first."""
    options = MemoryOptions(budget=system.memory.budget)  # which weights take turns is asked of the first alone

    def opened() -> System:
        return open_system(
            name,
            dtype=system.policy.precision,
            device=system.device,
            offline=system.offline,
            memory=options,
            compile=system.compiled,
        )

    upper = system.runtime.beside(name, opened)
    if not upper.family.sampling.defaults(upper.config).enlarges:
        raise BadRequest(f"{upper.name} cannot enlarge the clip of another model; vdm models and zoetrope can")
    return upper


def _factor(system: System, upper: System) -> int:
    """How many times the second model's sides are the first one's."""
    small, large = (each.family.sampling.defaults(each.config) for each in (system, upper))
    factor, rest = divmod(large.height, small.height)
    if rest or large.width != factor * small.width or factor < 2:
        raise BadRequest(
            f"{upper.name} makes {large.width}×{large.height}, which is not 2, 3 or more times the "
            f"{small.width}×{small.height} of {system.name}: name another model to enlarge its clips"
        )
    return factor
