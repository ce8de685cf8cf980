"""The stages of a request, each with its settled request: an optional image, the base, optional super-resolution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from kinema import registry
from kinema.canvas import Block
from kinema.events import Event, Note, OnEvent, ignore
from kinema.grid import Lattice
from kinema.media.timing import RATES
from kinema.schema import TASK_FIELDS, BadRequest, Request
from kinema.settle import in_windows, rolls_out, settle, sized
from kinema.spans import spans_of
from kinema.system import MemoryOptions, System, open_system
from kinema.tasks.upscale import factor

NONE = "none"
"""In place of a super-resolution model: none, although the model has one of its own."""
StageName = Literal["image", "base", "super-resolution"]
"""In the order in which they run."""


@dataclass(frozen=True)
class Upscaling:
    """How super-resolution enlarges the small clip: ``factor`` times the sides and ``every`` times the frames.

    ``weight`` is the weight of guidance by the small clip (w_r of VDM, section 3.1).
    """

    factor: int
    every: int
    weight: float


@dataclass(frozen=True, eq=False)
class SettledStage:
    """A stage whose request is settled; its canvas and blocks are not built yet."""

    name: StageName
    system: System
    request: Request
    enlarging: Upscaling | None = None


@dataclass(frozen=True)
class ReplayedStage:
    """One stage of a recipe: its settled request, with local files, and its blocks if the recipe states them."""

    request: Request
    blocks: tuple[Block, ...] = ()


def stages_of(system: System, request: Request, on_event: OnEvent = ignore) -> list[SettledStage]:
    """Return the stages of a request, in the order in which they run: the base stage, preceded by an image stage and
    followed by a super-resolution stage if requested.

    The request describes the finished clip, so its size, frames and rate are those of super-resolution. ``overlap``
    applies to the base stage's blocks; blocks of super-resolution share one frame.
    """
    request, of_image = split_prompt_options(system, request)
    stages = _clip_stages(system, sized(system, _with_second_stage(system, request)), on_event)
    if request.image_model is None:
        return stages
    return [_image_stage(system, stages[0].request, of_image, on_event), *stages]


def split_prompt_options(system: System, request: Request) -> tuple[Request, dict[str, Any]]:
    """Return the request, and the fields of its image stage that say how prompts are read.

    The clip's own request keeps them unless its model reads plain prompts only and the image model others.
    """
    if request.image_model is None:
        return request, {}
    painter = image_model(system, request)
    reads = painter.family.sampling.defaults(painter.config).prompts
    if reads is None:
        return request, {}
    options = {name: value for name, value in request.extra.items() if name in reads.options}
    fields = {"prompt_syntax": request.prompt_syntax, "extra": options}
    if system.family.sampling.defaults(system.config).prompts is not None:
        return request, fields
    own = {name: value for name, value in request.extra.items() if name not in options}
    return replace(request, prompt_syntax=None, extra=own), fields


def _with_second_stage(system: System, request: Request) -> Request:
    """Return the request with the model's own super-resolution, if it has one and the request does not name any."""
    if request.super_resolution == NONE:
        return replace(request, super_resolution=None)
    own = registry.SECOND_STAGES.get(system.name)
    if own is None or request.super_resolution is not None or not _enlargeable(request):
        return request
    return replace(request, super_resolution=own)


def _enlargeable(request: Request) -> bool:
    return "super_resolution" in TASK_FIELDS.get(request.task, ())


def _image_stage(system: System, base: Request, options: Mapping[str, Any], on_event: OnEvent) -> SettledStage:
    """Return the stage that generates the base stage's first frame, from its prompt and seed; ``options`` are fields.

    The image has the clip's aspect ratio and as many pixels as the image model's own size; it is then resized.
    """
    painter = image_model(system, base)
    own, (_, _, _, height, width) = painter.family.sampling.defaults(painter.config), base.shape.bcthw
    scale = math.sqrt(own.height * own.width / (height * width))
    spans = spans_of(base)
    request = Request(
        prompt=base.prompt if spans is None else spans.at(0),
        negative_prompt=base.negative_prompt,
        **options,
        seed=base.seed,
        clips=base.clips,
        frames=1,
        height=painter.lattice.snap_side(round(height * scale)),
        width=painter.lattice.snap_side(round(width * scale)),
    )
    return SettledStage("image", painter, settle(painter, request, on_event))


def _clip_stages(system: System, request: Request, on_event: OnEvent) -> list[SettledStage]:
    """Return the base stage of a request, followed by its super-resolution stage if requested."""
    if request.super_resolution is None or not _enlargeable(request):
        if request.task == "generate" and request.every is not None:
            raise BadRequest("--every needs --super-resolution, whose model generates the frames in between")
        return [_single_stage(system, settle(system, request, on_event))]
    once = NotesOnce(on_event)
    upper, every = super_resolution_model(system, request.super_resolution), _every(request)
    factor = _factor(system, upper)
    if request.prompt_spans and every > 1:
        raise BadRequest("prompt spans (--prompt-at) cannot be combined with --every: leave one of them out")
    base = settle(system, _base_request(system, upper, request, factor), once)
    fps = cast(float, base.fps) * every
    if not RATES[0] <= fps <= RATES[1]:
        raise BadRequest(
            f"--every {every} turns the {base.fps:g} fps of the base stage into {fps:g}; expected at most "
            f"{RATES[1]:g}: use a smaller --every"
        )
    large = _upper_request(system, upper, request, once).with_(
        seed=base.seed,
        height=factor * base.shape.height,
        width=factor * base.shape.width,
        frames=request.frames or every * base.shape.frames,
        fps=fps,
    )
    for what in ("height", "width"):
        if (asked := getattr(request, what)) not in (None, snapped := getattr(large, what)):
            once(Note(f"{what} {asked} snapped to {snapped}, the nearest that both models support"))
    settled = settle(upper, large, once)
    if (settled.height, settled.width) != (large.height, large.width):
        raise BadRequest(f"{upper.name} does not support {large.width}×{large.height}; ask for another size")
    enlarging = Upscaling(factor, every, request.super_resolution_weight)
    return [SettledStage("base", system, base), SettledStage("super-resolution", upper, settled, enlarging)]


def replayed(system: System, recorded: Sequence[ReplayedStage], on_event: OnEvent = ignore) -> list[SettledStage]:
    """Return the stages of a recipe. Their requests are settled, but checked again because recipes are untrusted."""
    on_event = NotesOnce(on_event)
    image, first, others = split_off_image(recorded)
    base = settle(system, first.request, on_event)
    parts = [_single_stage(system, base)]
    if image is not None:
        painter = image_model(system, base)
        frame = settle(painter, image.request, on_event)
        if (frame.task, frame.frames, frame.clips) != ("generate", 1, base.clips):
            raise BadRequest("the recipe is damaged: its image stage does not generate the first frame of its clip")
        parts.insert(0, SettledStage("image", painter, frame))
    for each in others:
        upper, every = super_resolution_model(system, str(each.request.super_resolution)), _every(each.request)
        large, factor = settle(upper, each.request, on_event), _factor(system, upper)
        b, _, t, h, w = base.shape.bcthw
        if (b, factor * h, factor * w) != (large.clips, large.height, large.width) or t != math.ceil(
            cast(int, large.frames) / every
        ):
            raise BadRequest("the recipe is damaged: its super-resolution stage does not match its base stage")
        parts.append(
            SettledStage("super-resolution", upper, large, Upscaling(factor, every, large.super_resolution_weight))
        )
    return parts


def _single_stage(system: System, request: Request) -> SettledStage:
    """Return the base stage, or for ``upscale`` the super-resolution stage of the user's clip."""
    if request.task != "upscale":
        return SettledStage("base", system, request)
    if not system.family.sampling.defaults(system.config).enlarges:
        raise BadRequest(f"{system.name} cannot upscale clips; vdm models, zoetrope and lumiere/pocket-sr can")
    enlarging = Upscaling(factor(request), request.every or 1, request.super_resolution_weight)
    return SettledStage("super-resolution", system, request, enlarging)


class NotesOnce:
    """A listener that passes each note on once, even if both stages report it."""

    def __init__(self, on_event: OnEvent) -> None:
        self.on_event = on_event
        self.seen: set[str] = set()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note):
            if event.message in self.seen:
                return
            self.seen.add(event.message)
        self.on_event(event)


def _every(request: Request) -> int:
    """Return the number of finished frames per frame of the base stage."""
    return (request.every or 1) if request.task == "generate" else 1


def _base_request(system: System, upper: System, request: Request, factor: int) -> Request:
    """Return the request of the base stage."""
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
    """Return the base stage's side for a finished side: the nearest that both models support."""
    if asked is None:
        return None
    step = small.side_multiple
    middle = small.snap_side(max(round(asked / factor), 1))
    offsets = range(-large.side_multiple, large.side_multiple + 1)
    sides = [side for offset in offsets if (side := middle + offset * step) > 0 and small.snap_side(side) == side]
    sides = [side for side in sides if large.snap_side(factor * side) == factor * side]
    if not sides:
        raise BadRequest(f"no side near {asked} is supported by both models; ask for another size")
    return min(sides, key=lambda side: (abs(factor * side - asked), -side))


def _upper_request(system: System, upper: System, request: Request, on_event: OnEvent) -> Request:
    """Return the request of super-resolution, without its size and without the base model's own options."""
    own, changes = upper.family.sampling.defaults(upper.config), dict[str, Any](loras=None, overlap=None)
    if upper.family.name != system.family.name:
        changes["extra"] = {}  # options of the other family
    if own.prompts is None:
        changes["prompt_syntax"] = None
    if not own.takes_prompt:
        changes |= {"prompt": "", "negative_prompt": "", "prompt_spans": {}, "guidance": None, "guidance_end": None}
    longest, window = upper.lattice.max_frames, request.window
    if window is not None and longest is not None and upper.lattice.grid.time.ceil(window) > longest:
        blank = Request()
        names = ("window", "window_places", "window_weights", "window_stride", "window_in", "noise_type", "loop")
        changes |= {name: getattr(blank, name) for name in names}
        on_event(Note(f"{upper.name} handles {longest} frames at a time: super-resolution runs in blocks, not windows"))
    large = replace(request, **changes)
    if large.prompt_spans and not own.prompt_spans and not _in_parts(upper, large):
        on_event(Note(f"{upper.name} handles the clip in one pass: super-resolution uses its first prompt throughout"))
        large = replace(large, prompt_spans={}, prompt=large.prompt or next(iter(large.prompt_spans.values())))
    return large


def _in_parts(upper: System, request: Request) -> bool:
    """Whether super-resolution runs in windows or blocks."""
    sized = replace(request, frames=request.frames or 1, height=request.height or 1, width=request.width or 1)
    return in_windows(sized) or rolls_out(upper, sized)


def split_off_image(
    recorded: Sequence[ReplayedStage],
) -> tuple[ReplayedStage | None, ReplayedStage, Sequence[ReplayedStage]]:
    """Return the image stage if there is one, the base stage, and those that follow."""
    names_image = [each.request.image_model is not None for each in recorded]
    if names_image[:2] == [False, True]:
        return recorded[0], recorded[1], recorded[2:]
    if names_image[0]:
        raise BadRequest("the recipe is damaged: it names an image model, and has no image stage")
    return None, recorded[0], recorded[1:]


def image_model(system: System, base: Request) -> System:
    """Return the model of the image stage. Raises BadRequest for one that generates nothing from a prompt."""
    painter = opened_once(system, str(base.image_model))
    if not painter.family.sampling.defaults(painter.config).takes_prompt:
        raise BadRequest(f"{painter.name} does not support prompts: choose another --image-model")
    return painter


def super_resolution_model(system: System, name: str) -> System:
    """Return the super-resolution model. Raises BadRequest for a model of another kind."""
    upper = opened_once(system, name)
    if not upper.family.sampling.defaults(upper.config).enlarges:
        raise BadRequest(
            f"{upper.name} is not a super-resolution model; vdm models, zoetrope and lumiere/pocket-sr are"
        )
    return upper


def opened_once(system: System, name: str) -> System:
    """Return the model of another stage, opened once, with the base model's device and precision."""
    options = MemoryOptions(budget=system.memory.budget)  # offloading options apply to the base model only

    def opened() -> System:
        return open_system(
            name,
            dtype=system.policy.precision,
            device=system.device,
            offline=system.offline,
            memory=options,
            compile=system.compiled,
        )

    return system.runtime.beside(name, opened)


def _factor(system: System, upper: System) -> int:
    """Return the ratio of the models' sides."""
    small, large = (each.family.sampling.defaults(each.config) for each in (system, upper))
    factor, rest = divmod(large.height, small.height)
    if rest or large.width != factor * small.width or factor < 2:
        raise BadRequest(
            f"{upper.name} generates {large.width}×{large.height}, which is not a multiple (2 or more) of the "
            f"{small.width}×{small.height} of {system.name}: choose another --super-resolution model"
        )
    return factor
