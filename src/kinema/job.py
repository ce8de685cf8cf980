"""A request made definite: each stage with its size, blocks, releases and memory plan; or refused.

A `Job` is plain data, which the recipe of a clip holds and `kinema replay` takes up again. Everything in it is settled
before a weight is read, and travels down from here: nothing below asks again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from kinema.canvas import Block, Canvas, Piece, Way, kind_of
from kinema.diffusion.overwrite import by_level, by_ratio
from kinema.diffusion.schedules import edit_steps
from kinema.memory.plan import Plan, choose
from kinema.schema import BadRequest, Note, OnEvent, Request, ignore
from kinema.settle import rolls_out, settle
from kinema.spans import spans_of
from kinema.system import System, open_system
from kinema.tasks import TASKS

OnSettled = Callable[[Request], None]
Stages = Literal["base", "super-resolution"]


def accept(_request: Request) -> None:
    """The check that everything passes."""


@dataclass(frozen=True)
class Enlarging:
    """How a stage enlarges the clip of the one before: ``factor`` times the sides, ``every`` times the frames.

    ``weight`` is that of guidance by the small clip (w_r of VDM, section 3.1).
    """

    factor: int
    every: int
    weight: float


@dataclass(frozen=True)
class Stage:
    """One model's part of a job. ``request`` is settled, and has the frames that were asked for.

    ``frames`` are those that are made: the next count on the model's lattice. They are made in ``blocks``, one for a
    clip that is made at once. ``enlarging`` is of a stage of super-resolution.
    """

    name: Stages
    model: str
    request: Request
    frames: int
    blocks: tuple[Block, ...]
    enlarging: Enlarging | None = None
    memory: Plan = field(default_factory=Plan)

    @property
    def whole(self) -> Request:
        """The request with the frames that are made."""
        return replace(self.request, frames=self.frames)

    def of(self, block: Block) -> Request:
        """The request of one block."""
        return self.whole if self.at_once else replace(self.request, frames=block.frames, loop=False)

    @property
    def at_once(self) -> bool:
        """Whether the clip is made in one pass."""
        return len(self.blocks) == 1 and self.blocks[0].frames == self.frames

    def told(self) -> dict[str, Any]:
        """As JSON holds it; whoever writes it says how the request names its files."""
        enlarging = {} if self.enlarging is None else {"enlarging": asdict(self.enlarging)}
        blocks, memory = [_told(block) for block in self.blocks], self.memory.told()
        return {"stage": self.name, "model": self.model, "frames": self.frames, "blocks": blocks, "memory": memory} | (
            enlarging
        )


def _told(block: Block) -> dict[str, Any]:
    told: dict[str, Any] = {"start": block.start, "frames": block.frames, "way": block.way}
    told |= {"releases": list(block.releases)} if block.releases else {}
    return told | ({} if block.prompt is None else {"prompt": block.prompt})


@dataclass(frozen=True)
class Recorded:
    """One stage of a recipe: its request, settled and with files that are here, and what it told besides."""

    request: Request
    blocks: tuple[Block, ...] = ()
    enlarging: Enlarging | None = None


Asked = Request | Sequence[Recorded]


@dataclass(frozen=True, eq=False)
class Work:
    """A stage with what it works on: an opened model, and a canvas of the frames that are made."""

    stage: Stage
    system: System
    canvas: Canvas

    @property
    def latent(self) -> tuple[int, int, int, int, int]:
        """B×C×T×h×w."""
        return self.system.latent_shape(self.stage.whole).bcthw

    def finished(self, video_BCTHW: Tensor) -> Tensor:
        """The frames that were asked for, with what was given in them as it was, to the bit."""
        request, given = self.stage.request, self.canvas.given
        asked = request.shape.frames
        video = torch.lerp(video_BCTHW, given.video, given.mask.expand_as(video_BCTHW))
        return video[:, :, -asked:] if request.backward else video[:, :, :asked]


# ------------------------------------------------------------------------------------ drawing up


def draw_up(system: System, asked: Asked, on_event: OnEvent = ignore, on_settled: OnSettled = accept) -> list[Work]:
    """The job of a request, with each choice said, and what it works on. Raises BadRequest for what cannot be done."""
    works = []
    for work in drawn(system, asked, on_event, on_settled):
        plan = planned(work)
        for reason in (*plan.reasons, *about_precision(work.system)):
            on_event(Note(reason))
        stage = replace(work.stage, memory=plan, request=plan.applied(work.stage.request))
        works.append(replace(work, stage=stage))
    return works


def drawn(system: System, asked: Asked, on_event: OnEvent = ignore, on_settled: OnSettled = accept) -> list[Work]:
    """The job of a request before its memory is planned.

    ``asked`` may be the stages of a recipe, which are taken as they were settled. No weight is read. The LoRAs that
    are asked for are in force after it: they belong to the job, and the caller holds the runtime's lock.
    """
    told = None if isinstance(asked, Request) else asked
    loras = asked.loras if isinstance(asked, Request) else asked[0].request.loras
    system.runtime.use_loras(None if loras is None else system.read_loras({**loras}))
    parts = parts_of(system, asked, on_event) if isinstance(asked, Request) else retaken(system, asked, on_event)
    on_settled(parts[-1].request)
    works = []
    for number, part in enumerate(parts):
        canvas = TASKS[part.request.task].canvas(part.request, ignore if number else on_event)
        work = work_of(part, replace(canvas, pieces=(canvas.given,)) if number else canvas)
        if told is not None and told[number].blocks:
            work = with_blocks(work, told[number].blocks)
        works.append(work)
    return works


@dataclass(frozen=True, eq=False)
class Part:
    """One stage, of which only the request is settled."""

    name: Stages
    system: System
    request: Request
    enlarging: Enlarging | None = None


def parts_of(system: System, request: Request, on_event: OnEvent = ignore) -> list[Part]:
    """The stages of a request: one, or a small clip and its super-resolution."""
    if request.super_resolution is None:
        if request.task == "generate" and request.every is not None:
            raise BadRequest("generate takes every with super_resolution, which makes the frames between: give both")
        return [Part("base", system, settle(system, request, on_event))]
    upper = beside(system, request.super_resolution)
    factor, every = _factor(system, upper), (request.task == "generate" and request.every) or 1
    if request.prompt_spans and every > 1:
        raise BadRequest(
            "prompt_spans are of frames that the first stage makes: leave every out, or one prompt for all"
        )
    small = replace(
        request,
        super_resolution=None,
        every=None if request.task == "generate" else request.every,
        height=None if request.height is None else max(round(request.height / factor), 1),
        width=None if request.width is None else max(round(request.width / factor), 1),
        frames=None if request.frames is None else math.ceil(request.frames / every),
        fps=None if request.fps is None else request.fps / every,
    )
    base = settle(system, small, on_event)
    untold: dict[str, Any] = {"prompt": "", "negative_prompt": "", "guidance": None, "guidance_end": None}
    large = replace(
        request,
        seed=base.seed,
        height=factor * base.shape.height,
        width=factor * base.shape.width,
        frames=request.frames or every * base.shape.frames,
        fps=cast(float, base.fps) * every,
        loras=None,
        **({} if upper.family.sampling.defaults(upper.config).takes_prompt else untold),
    )
    enlarging = Enlarging(factor, every, request.super_resolution_weight)
    return [Part("base", system, base), Part("super-resolution", upper, settle(upper, large, on_event), enlarging)]


def retaken(system: System, recorded: Sequence[Recorded], on_event: OnEvent = ignore) -> list[Part]:
    """The stages of a recipe. They are settled already; what somebody else wrote is checked again."""
    parts = []
    for each in recorded:
        name = each.request.super_resolution
        own = system if name is None else beside(system, name)
        stage: Stages = "base" if name is None else "super-resolution"
        parts.append(Part(stage, own, settle(own, each.request, on_event), each.enlarging))
    return parts


def beside(system: System, name: str) -> System:
    """The model of the second stage, opened once, where and as precise as the first."""
    upper = system.runtime.beside(
        name,
        lambda: open_system(
            name, dtype=system.precision, device=system.device, offline=system.offline, memory=system.memory
        ),
    )
    if not upper.family.sampling.defaults(upper.config).enlarges:
        raise BadRequest(f"{upper.name} cannot enlarge the clip of another model; vdm models can")
    return upper


def _factor(system: System, upper: System) -> int:
    """How many times the second model's sides are the first one's."""
    small, large = (each.family.sampling.defaults(each.config) for each in (system, upper))
    factor, rest = divmod(large.height, small.height)
    if rest or large.width != factor * small.width or factor < 2:
        sizes = f"{large.width}×{large.height} is not {small.width}×{small.height}"
        raise BadRequest(f"{upper.name} cannot enlarge what {system.name} makes: {sizes} times a whole number")
    return factor


def work_of(part: Part, canvas: Canvas) -> Work:
    """A stage whose canvas is drawn, with its blocks; the memory plan is still to be chosen."""
    system, request = part.system, part.request
    frames = system.lattice.grid.time.ceil(request.shape.frames)
    canvas = canvas.longer(frames - request.shape.frames, before=request.backward)
    blocks = blocks_of(system, replace(request, frames=frames), canvas, part.enlarging)
    stage = Stage(part.name, system.name, request, frames, blocks, part.enlarging)
    return Work(stage, system, replace(canvas, block=blocks[0]))


def with_blocks(work: Work, blocks: tuple[Block, ...]) -> Work:
    """The work with the blocks of a recipe. Raises BadRequest for those that cannot make this clip."""
    stage, steps = work.stage, cast(int, work.stage.request.steps)
    most = max(block.start + block.frames for block in stage.blocks)
    ways = {block.way for block in stage.blocks}
    made: set[int] = set()
    for block in blocks:
        fits = 0 <= block.start and 0 < block.frames <= stage.blocks[0].frames and block.start + block.frames <= most
        if not fits or block.way not in ways or len(block.releases) != len(work.canvas.held):
            raise BadRequest(f"a block of {block.frames} frames from {block.start} on is none of this clip")
        if not all(0 <= release <= steps for release in block.releases):
            raise BadRequest(f"a block lets go of a piece at step {block.releases}; expected 0 to {steps}")
        made.update(range(block.start, block.start + block.frames))
    if not made >= {frame for block in stage.blocks for frame in range(block.start, block.start + block.frames)}:
        raise BadRequest(f"the blocks do not make all of the {stage.frames} frames of this clip")
    return replace(work, stage=replace(stage, blocks=blocks), canvas=replace(work.canvas, block=blocks[0]))


# ---------------------------------------------------------------------------------------- blocks


def blocks_of(
    system: System, request: Request, canvas: Canvas, enlarging: Enlarging | None = None
) -> tuple[Block, ...]:
    """The passes that a clip is made in, each with the way that it holds what is known by then.

    Refuses, by name, a canvas the family cannot hold, or a way that it does not offer.
    """
    total, length = request.shape.frames, system.lattice.max_frames or request.shape.frames
    releases = released(system, request, canvas)
    if enlarging is not None and total > length:
        return _meeting(system, request, length, enlarging.every)
    way = honour(system, request, canvas.kind)
    if way != "continuation" and not rolls_out(system, request):
        return (Block(0, total, way, releases),)
    starts = block_starts(system, request, canvas, length)
    mask = canvas.longer(max(starts) + length - total).mask.clone()
    made = []
    for start in starts:
        frames = slice(start, start + length)
        kind = kind_of(mask[:, :, frames])
        if kind != "all" or canvas.held:
            way, prompt = honour(system, request, kind, one_pass=True), prompt_of(system, request, start, length)
            made.append(Block(start, length, way, releases, prompt))
        mask[:, :, frames] = 1
    return tuple(made)


def _meeting(system: System, request: Request, length: int, every: int) -> tuple[Block, ...]:
    """The blocks of super-resolution: each begins with the last frame of the one before, where the small clip has one
    too. The last may be shorter.
    """
    total, step = request.shape.frames, (length - 1) // every * every
    if step < 1:
        raise BadRequest(f"{system.name} sees {length} frames, too few to make those between frames {every} apart")
    starts = range(0, max(total - 1, 1), step)
    ways = [honour(system, request, "first" if start else "nothing", one_pass=True) for start in starts]
    frames = [min(step + 1, total - start) for start in starts]
    prompts = [prompt_of(system, request, *part) for part in zip(starts, frames, strict=True)]
    told = zip(starts, frames, ways, prompts, strict=True)
    return tuple(Block(start, count, way, (), prompt) for start, count, way, prompt in told)


def prompt_of(system: System, request: Request, start: int, frames: int) -> str | None:
    """The prompt of a block where they change with blocks: that of its middle. None where all of them have one."""
    spans = spans_of(request)
    if spans is None or system.family.sampling.defaults(system.config).prompt_spans:
        return None
    return spans.at(min(start + frames // 2, request.shape.frames - 1))


def released(system: System, request: Request, canvas: Canvas) -> tuple[int, ...]:
    """The states after which the canvas's pieces are free, by the rule that each release names."""
    steps, levels, made = cast(int, request.steps), system.levels(request), []
    for piece in canvas.held:
        by, amount = piece.release.by, piece.release.amount
        if by == "strength":
            made.append(steps - edit_steps(steps, amount))
        elif by == "level":
            made.append(by_level(amount, levels))
        else:
            made.append(by_ratio(amount, system.process(request).schedule.time(levels.log_snr)))
    return tuple(made)


def honour(system: System, request: Request, kind: str, *, one_pass: bool = False) -> Way:
    """How a canvas of this kind will be held.

    Continuation goes on from the last given frame, as `rollout` does: it is no way for ``one_pass`` of the sampler.
    Refuses, by name, a canvas the family cannot hold, or a way that it does not offer.
    """
    ways, asked = system.family.sampling.honours(system.config, kind), request.honour
    if one_pass or request.window is not None:
        ways = tuple(way for way in ways if way != "continuation")
        asked = "auto" if one_pass and asked == "continuation" else asked  # a block goes on by itself
    if not ways:
        what = f"a canvas of the kind {kind!r}"
        raise BadRequest(f"{system.name} cannot hold {what} that this {request.task} needs")
    if asked == "auto" or kind == "nothing":
        return cast(Way, ways[0])
    if asked not in ways:
        raise BadRequest(f"{system.name} does not hold a canvas by {asked}; it offers {', '.join(ways)}")
    return asked


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


def rehearsed(work: Work) -> Canvas:
    """What memory is planned for: the whole canvas, or a block that holds what it shares with the one before."""
    stage, canvas = work.stage, work.canvas
    if stage.at_once:
        return canvas
    blocks = stage.blocks
    block = blocks[1] if len(blocks) > 1 else blocks[0]
    shared = block.frames - abs(block.start - blocks[0].start) if len(blocks) > 1 else 1
    long = canvas.longer(block.start + block.frames - stage.frames)
    mask = torch.zeros_like(long.mask[:, :, : block.frames])
    mask[:, :, block.frames - shared if blocks[0].start > blocks[-1].start else 0 :][:, :, :shared] = 1
    known = Piece(long.video[:, :, : block.frames], mask)
    return long.part(replace(block, start=0), known)


def planned(work: Work) -> Plan:
    """How a stage will run within the memory there is; refuses one that cannot, before anything is loaded."""
    canvas = rehearsed(work)
    return choose(work.system, work.stage.of(canvas.block), canvas, measured=work.stage.enlarging is not None)


def about_precision(system: System) -> list[str]:
    if system.rounded is None:
        return []
    name = str(system.rounded).removeprefix("torch.")
    return [f"this processor has no units for {name}: weights are rounded to it, and computed with in float32"]
