"""A request made definite: each stage with its size, blocks, releases and memory plan; or refused.

A job is a list of stages, each of them plain data, which the recipe of a clip holds and `kinema replay` takes up again.
Everything in it is settled before a weight is read, and travels down from here: nothing below asks again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from kinema.canvas import Block, Canvas, Piece, Way, kind_of
from kinema.diffusion.overwrite import by_level, by_ratio
from kinema.diffusion.schedules import edit_steps
from kinema.events import Note, OnEvent, ignore
from kinema.memory.plan import MemoryPlan, choose, weight_bytes
from kinema.schema import BadRequest, Request
from kinema.settle import rolls_out
from kinema.spans import later, spans_of
from kinema.stages import ReplayedStage, SettledStage, Stages, Upscaling, replayed, stages_of
from kinema.system import System
from kinema.tasks import TASKS
from kinema.values import quoted

OnSettled = Callable[[Request], None]
Noise = Tensor | Mapping[str, Tensor] | None
"""Standard normal B×C×T×h×w of the one stage, or of stages by name."""


def accept(_request: Request) -> None:
    """The check that everything passes."""


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
    enlarging: Upscaling | None = None
    memory: MemoryPlan = field(default_factory=MemoryPlan)

    @property
    def whole(self) -> Request:
        """The request with the frames that are made."""
        return made_whole(self.request, self.frames)

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


def made_whole(request: Request, frames: int) -> Request:
    """The request with the frames that are made. A backward clip has those beyond the asked before it: its prompts over
    frames come so much later.
    """
    more = frames - request.shape.frames if request.backward else 0
    return replace(request, frames=frames, prompt_spans=later(request.prompt_spans, more))


def _told(block: Block) -> dict[str, Any]:
    told: dict[str, Any] = {"start": block.start, "frames": block.frames, "way": block.way}
    told |= {"releases": list(block.releases)} if block.releases else {}
    return told | ({} if block.prompt is None else {"prompt": block.prompt})


Asked = Request | Sequence[ReplayedStage]


@dataclass(frozen=True, eq=False)
class StageRun:
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
        given = self.canvas.given
        return self.asked(torch.lerp(video_BCTHW, given.video, given.mask.expand_as(video_BCTHW)))

    def asked(self, x_BCTHW: Tensor) -> Tensor:
        """Of something for each frame that is made, that of the frames that were asked for."""
        request = self.stage.request
        asked = request.shape.frames
        return x_BCTHW[:, :, -asked:] if request.backward else x_BCTHW[:, :, :asked]


# ------------------------------------------------------------------------------------ drawing up


def draw_up(system: System, asked: Asked, on_event: OnEvent = ignore, on_settled: OnSettled = accept) -> list[StageRun]:
    """The job of a request, with each choice said, and what it works on. Raises BadRequest for what cannot be done."""
    works: list[StageRun] = []
    stages = drawn_up(system, asked, on_event, on_settled)
    for number, work in enumerate(stages):
        plan = with_memory_plan(work, bytes_of_other_stages(stages, number))
        for reason in (*plan.reasons, *precision_notes(work.system)):
            on_event(Note(reason))
        stage = replace(work.stage, memory=plan, request=plan.applied(work.stage.request))
        works.append(replace(work, stage=stage))
    return works


def drawn_up(
    system: System, asked: Asked, on_event: OnEvent = ignore, on_settled: OnSettled = accept
) -> list[StageRun]:
    """The job of a request before its memory is planned.

    ``asked`` may be the stages of a recipe, which are taken as they were settled. No weight is read. The LoRAs that
    are asked for are in force after it: they belong to the job, and the caller holds the runtime's lock.
    """
    told = None if isinstance(asked, Request) else asked
    loras = asked.loras if isinstance(asked, Request) else asked[0].request.loras
    system.runtime.use_loras(None if loras is None else system.read_loras({**loras}))
    parts = stages_of(system, asked, on_event) if isinstance(asked, Request) else replayed(system, asked, on_event)
    on_settled(parts[-1].request)
    works = []
    for number, part in enumerate(parts):
        work = stage_run(part, _given(part) if number else TASKS[part.request.task].canvas(part.request, on_event))
        if told is not None and told[number].blocks:
            work = with_blocks(work, told[number].blocks)
        works.append(work)
    return works


def _given(part: SettledStage) -> Canvas:
    """The canvas of a second stage: what is given at its size. What is released in between is of the first stage."""
    if part.request.task == "edit":
        return Canvas(part.request.shape)
    canvas = TASKS[part.request.task].canvas(part.request, ignore)
    return replace(canvas, pieces=(canvas.given,))


def stage_run(part: SettledStage, canvas: Canvas) -> StageRun:
    """A stage whose canvas is drawn, with its blocks; the memory plan is still to be chosen."""
    system, request = part.system, part.request
    frames = system.lattice.grid.time.ceil(request.shape.frames)
    canvas = canvas.longer(frames - request.shape.frames, before=request.backward)
    blocks = blocks_of(system, made_whole(request, frames), canvas, part.enlarging)
    stage = Stage(part.name, system.name, request, frames, blocks, part.enlarging)
    return StageRun(stage, system, replace(canvas, block=blocks[0]) if blocks else canvas)


def with_blocks(work: StageRun, blocks: tuple[Block, ...]) -> StageRun:
    """The work with the blocks of a recipe. Raises BadRequest for those that cannot make this clip."""
    stage, own = work.stage, work.stage.blocks
    if len(blocks) > 2 * len(own):
        raise BadRequest(f"the recipe has {len(blocks):,} blocks; this clip is made in {len(own):,}")
    every = 1 if stage.enlarging is None else stage.enlarging.every
    most = max((block.start + block.frames for block in own), default=0)
    ways, prompts = {block.way for block in own}, {block.prompt for block in own}
    made: set[int] = set()
    for block in blocks:
        frames = range(block.start, block.start + block.frames)
        if block.start < 0 or block.start % every or not 0 < block.frames <= own[0].frames or frames.stop > most:
            raise BadRequest(f"a block of {block.frames} frames from {block.start} on is none of this clip")
        if block.way not in ways or block.prompt not in prompts:
            raise BadRequest(f"the block from {block.start} on has another way or prompt than this clip's blocks")
        steps, held = cast(int, stage.request.steps), len(work.canvas.held)
        if len(block.releases) != held or not all(0 <= release <= steps for release in block.releases):
            raise BadRequest(f"the block from {block.start} on lets go of other pieces; expected {held}, 0 to {steps}")
        made.update(frames)
    if not made >= {frame for block in own for frame in range(block.start, block.start + block.frames)}:
        raise BadRequest(f"the blocks do not make all of the {stage.frames} frames of this clip")
    return replace(work, stage=replace(stage, blocks=blocks), canvas=replace(work.canvas, block=blocks[0]))


# --------------------------------------------------------------------------- what callers name


def noises_of(works: Sequence[StageRun], noise: Noise) -> dict[str, Tensor]:
    """The caller's noise by stage. Raises BadRequest for a stage that is not there, or another shape."""
    names = [work.stage.name for work in works]
    if noise is not None and not isinstance(noise, Tensor | Mapping):
        raise BadRequest(f"noise is {quoted(noise)}; expected a tensor, or one of each stage by its name")
    if isinstance(noise, Tensor) and len(works) > 1:
        raise BadRequest(f"this job has two stages, so noise is of one by name: {' or '.join(names)}")
    told: dict[str, Tensor] = {names[0]: noise} if isinstance(noise, Tensor) else {**(noise or {})}
    for name, own in told.items():
        if name not in names:
            raise BadRequest(f"noise is of a stage {name!r}; this job has {' and '.join(names)}")
        work = works[names.index(cast(Any, name))]
        if not isinstance(own, Tensor):
            raise BadRequest(f"noise is {quoted(own)}; expected a tensor of shape {work.latent}")
        if not bool(own.isfinite().all()):
            raise BadRequest("noise has values that are infinite or no numbers; expected a standard normal")
        if tuple(own.shape) != work.latent:
            raise BadRequest(
                f"noise has shape {tuple(own.shape)}; this request to {work.system.name} needs {work.latent}"
            )
    return told


def latents_wanted(works: Sequence[StageRun], output: str) -> str:
    """The stage of which latents are asked for, "" where none are."""
    if output == "clip":
        return ""
    names = [work.stage.name for work in works]
    ways = ["latents"] if len(works) == 1 else [f"latents:{name}" for name in names]
    if output not in (*ways, f"latents:{names[0]}"):
        raise BadRequest(f"output is {output!r}; expected clip or {' or '.join(ways)}")
    wanted = works[names.index(cast(Any, output.partition(":")[2] or names[0]))]
    if not wanted.stage.at_once:
        raise BadRequest("block-wise clips cannot return latents; ask for a window or fewer frames")
    return wanted.stage.name


# ---------------------------------------------------------------------------------------- blocks


def blocks_of(
    system: System, request: Request, canvas: Canvas, enlarging: Upscaling | None = None
) -> tuple[Block, ...]:
    """The passes that a clip is made in, each with the way that it holds what is known by then.

    None where all of a clip that is longer than the model is given. Refuses, by name, a canvas the family cannot hold,
    or a way that it does not offer.
    """
    total, length = request.shape.frames, system.lattice.max_frames or request.shape.frames
    releases, strict = released(system, request, canvas), enlarging is None
    way = honour(system, request, canvas.kind, strict=strict)
    if way != "continuation" and not rolls_out(system, request):
        return (Block(0, total, way, releases),)
    if enlarging is None:
        starts = [(start, length) for start in block_starts(system, request, canvas, length)]
    else:
        starts = _meeting(system, total, length, enlarging.every)
    mask = canvas.longer(max(start + frames for start, frames in starts) - total).mask.clone()
    # Each block has the prompt of its middle, unless the family tells each frame its own.
    spans = None if system.family.sampling.defaults(system.config).prompt_spans else spans_of(request)
    made = []
    for start, frames in starts:
        kind = kind_of(mask[:, :, start : start + frames])
        if kind != "all" or canvas.held:
            way = honour(system, request, kind, one_pass=True, strict=strict)
            prompt = None if spans is None else spans.at(start + frames // 2)
            made.append(Block(start, frames, way, releases, prompt))
        mask[:, :, start : start + frames] = 1
    return tuple(made)


def _meeting(system: System, total: int, length: int, every: int) -> list[tuple[int, int]]:
    """First frames and lengths of the blocks of super-resolution: each begins with the last frame of the one before,
    or a little earlier, where the small clip has a frame too. The last is as short as the model can make it.
    """
    step, time = (length - 1) // every * every, system.lattice.grid.time
    if step < 1:
        raise BadRequest(f"{system.name} sees {length} frames, too few to make those between frames {every} apart")
    return [(start, time.ceil(min(step + 1, total - start))) for start in range(0, max(total - 1, 1), step)]


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


def honour(system: System, request: Request, kind: str, *, one_pass: bool = False, strict: bool = True) -> Way:
    """How a canvas of this kind will be held.

    The way that is asked for is the first stage's: one that is not ``strict`` takes its own where it offers another.

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
    if asked not in ways and not strict:
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


def rehearsed(work: StageRun) -> Canvas:
    """What memory is planned for: the whole canvas, or a block that holds what it shares with the one before."""
    stage, canvas = work.stage, work.canvas
    if stage.at_once or not stage.blocks:
        return canvas
    blocks = stage.blocks
    block = blocks[1] if len(blocks) > 1 else blocks[0]
    shared = block.frames - abs(block.start - blocks[0].start) if len(blocks) > 1 else 1
    long = canvas.longer(block.start + block.frames - stage.frames)
    mask = torch.zeros_like(long.mask[:, :, : block.frames])
    mask[:, :, block.frames - shared if blocks[0].start > blocks[-1].start else 0 :][:, :, :shared] = 1
    known = Piece(long.video[:, :, : block.frames], mask)
    return long.part(replace(block, start=0), known)


def with_memory_plan(work: StageRun, taken: int = 0) -> MemoryPlan:
    """How a stage will run within the memory there is, of which so many bytes are ``taken`` by other stages; refuses
    one that cannot, before anything is loaded.
    """
    if not work.stage.blocks:
        return MemoryPlan()
    canvas, measured = rehearsed(work), work.stage.enlarging is not None
    return choose(work.system, work.stage.of(canvas.block), canvas, measured=measured, taken=taken)


def bytes_of_other_stages(works: Sequence[StageRun], number: int) -> int:
    """Bytes that the weights of other stages take while this one runs, and that are not counted as used already."""
    told, taken = works[number].system.memory.budget is not None, 0
    for other in range(len(works)):
        system = works[other].system
        loaded = system.runtime.model is not None
        if other != number and (told if loaded else other < number):
            taken += weight_bytes(system)
    return taken


def precision_notes(system: System) -> list[str]:
    """In which precision it computes and why, where there is something to say."""
    return [system.policy.note] if system.policy.note else []
