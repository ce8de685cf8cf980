"""Turn a request into a job: a list of stages, each with its size, blocks, release states and memory plan.

Stages are plain data: the recipe of a clip stores them and `kinema replay` reads them. Every choice is made here,
before any weight is loaded; modules below do not choose again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from kinema.canvas import Block, Canvas, Piece, Way
from kinema.diffusion.overwrite import release_at_level, release_at_ratio
from kinema.diffusion.schedules import edit_steps
from kinema.events import Note, OnEvent, ignore
from kinema.media.fitting import fit
from kinema.memory.plan import MemoryPlan, choose, weight_bytes
from kinema.schema import BadRequest, Request
from kinema.settle import block_frames, own_blocks, rolls_out, with_prompt_loras
from kinema.spans import later, spans_of
from kinema.stages import ReplayedStage, SettledStage, StageName, Upscaling, replayed, stages_of
from kinema.system import System
from kinema.tasks import TASKS, animate
from kinema.values import quoted

OnSettled = Callable[[Request], None]
Noise = Tensor | Mapping[str, Tensor] | None
"""Standard normal noise B×C×T×h×w of the only stage, or of stages by name."""


def accept(_request: Request) -> None:
    """Accept every settled request: the default check."""


@dataclass(frozen=True)
class Stage:
    """One generation stage of a job. ``request`` is settled and has the requested frame count.

    ``frames`` is the generated frame count: the next one on the model's lattice. They are sampled in ``blocks``, a
    single one unless the clip is block-wise. ``enlarging`` is set for the super-resolution stage.
    """

    name: StageName
    model: str
    request: Request
    frames: int
    blocks: tuple[Block, ...]
    enlarging: Upscaling | None = None
    memory: MemoryPlan = field(default_factory=MemoryPlan)

    @property
    def whole(self) -> Request:
        """The request with the generated frame count."""
        return with_generated_frames(self.request, self.frames)

    def of(self, block: Block) -> Request:
        """Return the request of one block."""
        return self.whole if self.at_once else replace(self.request, frames=block.frames, loop=False)

    @property
    def at_once(self) -> bool:
        """Whether the clip is generated in one pass."""
        return len(self.blocks) == 1 and self.blocks[0].frames == self.frames

    def to_dict(self) -> dict[str, Any]:
        """Return the stage as JSON data, without its request."""
        enlarging = {} if self.enlarging is None else {"enlarging": asdict(self.enlarging)}
        blocks, memory = [_block_dict(block) for block in self.blocks], self.memory.to_recipe()
        return {"stage": self.name, "model": self.model, "frames": self.frames, "blocks": blocks, "memory": memory} | (
            enlarging
        )


def with_generated_frames(request: Request, frames: int) -> Request:
    """Return the request with the generated frame count. A backward clip has the surplus frames at its start, so its
    prompt spans are shifted by their number.
    """
    more = frames - request.shape.frames if request.backward else 0
    return replace(request, frames=frames, prompt_spans=later(request.prompt_spans, more))


def _block_dict(block: Block) -> dict[str, Any]:
    data: dict[str, Any] = {"start": block.start, "frames": block.frames, "way": block.way}
    data |= {"releases": list(block.releases)} if block.releases else {}
    return data | ({} if block.prompt is None else {"prompt": block.prompt})


JobSource = Request | Sequence[ReplayedStage]


@dataclass(frozen=True, eq=False)
class StageRun:
    """A stage with its model and the canvas of its generated frames."""

    stage: Stage
    system: System
    canvas: Canvas

    @property
    def latent(self) -> tuple[int, int, int, int, int]:
        """The latent shape, B×C×T×h×w."""
        return self.system.latent_shape(self.stage.whole).bcthw

    def finished(self, video_BCTHW: Tensor) -> Tensor:
        """Return the requested frames, in which the given pixels are bit-identical to the input."""
        given = self.canvas.given
        return self.requested(torch.lerp(video_BCTHW, given.video, given.mask.expand_as(video_BCTHW)))

    def requested(self, x_BCTHW: Tensor) -> Tensor:
        """Cut a tensor over the generated frames to the requested frames."""
        request = self.stage.request
        count = request.shape.frames
        return x_BCTHW[:, :, -count:] if request.backward else x_BCTHW[:, :, :count]


# -------------------------------------------------------------------------------- building a job


def plan_job(
    system: System, asked: JobSource, on_event: OnEvent = ignore, on_settled: OnSettled = accept
) -> list[StageRun]:
    """Build a job with its memory plans and report each choice. Raises BadRequest for unsupported requests."""
    works: list[StageRun] = []
    stages = build_job(system, asked, on_event, on_settled)
    for work in stages:
        work.system.family.checkpoints.check_ready(work.system)
    for number, work in enumerate(stages):
        plan = choose_memory_plan(work, bytes_of_other_stages(stages, number))
        for reason in (*plan.reasons, *precision_notes(work.system), *lora_notes(work.system)):
            on_event(Note(reason))
        stage = replace(work.stage, memory=plan, request=plan.applied(work.stage.request))
        works.append(replace(work, stage=stage))
    return works


def build_job(
    system: System, asked: JobSource, on_event: OnEvent = ignore, on_settled: OnSettled = accept
) -> list[StageRun]:
    """Build a job without memory plans. Loads no weights.

    ``asked`` is a request, or the settled stages of a recipe. The job's LoRAs are active afterwards, so the caller must
    hold the runtime's lock.
    """
    recorded = None if isinstance(asked, Request) else asked
    asked = with_prompt_loras(system, asked, on_event) if isinstance(asked, Request) else asked
    loras = asked.loras if isinstance(asked, Request) else asked[0].request.loras
    system.runtime.use_loras(None if loras is None else system.read_loras({**loras}))
    parts = stages_of(system, asked, on_event) if isinstance(asked, Request) else replayed(system, asked, on_event)
    on_settled(parts[-1].request)
    works = []
    for number, part in enumerate(parts):
        enlarges = number > 0 and parts[number - 1].name == "base"
        work = stage_run(part, _given(part) if enlarges else TASKS[part.request.task].canvas(part.request, on_event))
        if recorded is not None and recorded[number].blocks:
            work = with_blocks(work, recorded[number].blocks)
        works.append(work)
    note_reconstruction(works, on_event)
    return works


def note_reconstruction(works: Sequence[StageRun], on_event: OnEvent) -> None:
    """Emit a note on a weight of reconstruction guidance for a clip that holds its given pixels in other ways."""
    ways = dict.fromkeys(block.way for work in works for block in work.stage.blocks)
    weight = works[-1].stage.request.reconstruction_weight
    if weight != Request().reconstruction_weight and "reconstruction" not in ways:
        given = f"the given pixels are held by {' and '.join(ways)}" if ways else "all pixels are given"
        on_event(Note(f"--reconstruction-weight is not used, since {given}"))


def _given(part: SettledStage) -> Canvas:
    """Return the canvas of the super-resolution stage: the given pixels only; the base stage has released the rest."""
    if part.request.task == "edit":
        return Canvas(part.request.shape)
    canvas = TASKS[part.request.task].canvas(part.request, ignore)
    return canvas.permanent


def stage_run(part: SettledStage, canvas: Canvas) -> StageRun:
    """Return the stage with its canvas and blocks, without a memory plan."""
    system, request = part.system, part.request
    frames = system.lattice.grid.time.ceil(request.shape.frames)
    canvas = canvas.longer(frames - request.shape.frames, before=request.backward)
    blocks = blocks_of(system, with_generated_frames(request, frames), canvas, part.enlarging)
    stage = Stage(part.name, system.name, request, frames, blocks, part.enlarging)
    return StageRun(stage, system, replace(canvas, block=blocks[0]) if blocks else canvas)


def with_image(work: StageRun, image_B3THW: Tensor, on_event: OnEvent = ignore) -> StageRun:
    """Return a stage with the first frame that the image stage generated, resized to the stage's size."""
    stage, request = work.stage, work.stage.request
    image_B3THW, note = fit(image_B3THW, request.shape.height, request.shape.width, request.fit)
    if note:
        on_event(Note(f"the generated image {note}"))
    canvas = animate.canvas(request, ignore, image_B3THW).longer(stage.frames - request.shape.frames)
    canvas = canvas if stage.enlarging is None else canvas.permanent
    return replace(work, canvas=replace(canvas, block=work.canvas.block))


def with_blocks(work: StageRun, blocks: tuple[Block, ...]) -> StageRun:
    """Return the stage with the blocks of a recipe. Raises BadRequest for blocks that do not fit this clip."""
    stage, own = work.stage, work.stage.blocks
    if len(blocks) > 2 * len(own):
        raise BadRequest(f"the recipe has {len(blocks):,} blocks; this clip has {len(own):,}")
    every = 1 if stage.enlarging is None else stage.enlarging.every
    most = max((block.start + block.frames for block in own), default=0)
    ways, prompts = {block.way for block in own}, {block.prompt for block in own}
    covered: set[int] = set()
    for block in blocks:
        frames = range(block.start, block.start + block.frames)
        where = f"the recipe's block at frame {block.start}"
        if block.start < 0 or block.start % every or not 0 < block.frames <= own[0].frames or frames.stop > most:
            raise BadRequest(f"{where} with {block.frames} frames does not fit this clip")
        if block.way not in ways or block.prompt not in prompts:
            raise BadRequest(f"{where} holds frames in a way, or has a prompt, that this clip does not use")
        steps, held = cast(int, stage.request.steps), len(work.canvas.held)
        if len(block.releases) != held or not all(0 <= release <= steps for release in block.releases):
            raise BadRequest(f"{where} has invalid releases; expected {held}, each 0 to {steps}")
        covered.update(frames)
    if not covered >= {frame for block in own for frame in range(block.start, block.start + block.frames)}:
        raise BadRequest(f"the recipe's blocks do not cover all {stage.frames} frames of this clip")
    return replace(work, stage=replace(stage, blocks=blocks), canvas=replace(work.canvas, block=blocks[0]))


def base_of(works: Sequence[StageRun]) -> StageRun:
    """Return the stage that the user's model and inputs belong to: the first, or the one after an image stage."""
    return works[1] if works[0].stage.name == "image" else works[0]


# ---------------------------------------------------------------------- noise and latents by stage


def noise_by_stage(works: Sequence[StageRun], noise: Noise) -> dict[str, Tensor]:
    """Return the caller's noise by stage. Raises BadRequest for an unknown stage or the wrong shape."""
    names = [work.stage.name for work in works]
    if noise is not None and not isinstance(noise, Tensor | Mapping):
        raise BadRequest(f"noise is {quoted(noise)}; expected a tensor, or tensors by stage name")
    if isinstance(noise, Tensor) and len(works) > 1:
        raise BadRequest(
            f"noise is one tensor but this job has several stages; give tensors by name: {', '.join(names)}"
        )
    by_stage: dict[str, Tensor] = {names[0]: noise} if isinstance(noise, Tensor) else {**(noise or {})}
    for name, own in by_stage.items():
        if name not in names:
            raise BadRequest(f"noise names the stage {name!r}; this job has {' and '.join(names)}")
        work = works[names.index(cast(Any, name))]
        if not isinstance(own, Tensor):
            raise BadRequest(f"noise is {quoted(own)}; expected a tensor of shape {work.latent}")
        if not bool(own.isfinite().all()):
            raise BadRequest("noise has infinite or NaN values; expected standard normal noise")
        if tuple(own.shape) != work.latent:
            raise BadRequest(
                f"noise has shape {tuple(own.shape)}; this request to {work.system.name} needs {work.latent}"
            )
    return by_stage


def latents_stage(works: Sequence[StageRun], output: str) -> str:
    """Return the stage whose latents ``output`` requests; "" for a clip."""
    if output == "clip":
        return ""
    names = [work.stage.name for work in works]
    ways = ["latents"] if len(works) == 1 else [f"latents:{name}" for name in names]
    if output not in (*ways, f"latents:{names[0]}"):
        raise BadRequest(f"output is {output!r}; expected clip or {' or '.join(ways)}")
    stage = works[names.index(cast(Any, output.partition(":")[2] or names[0]))].stage
    if not stage.at_once:
        raise BadRequest("block-wise clips cannot return latents; ask for a window or fewer frames")
    return stage.name


# ---------------------------------------------------------------------------------------- blocks


def blocks_of(
    system: System, request: Request, canvas: Canvas, enlarging: Upscaling | None = None
) -> tuple[Block, ...]:
    """Return the blocks of frames that a clip is sampled in, each with the way it holds the frames known so far.

    The result is empty if the clip is longer than the model's limit and entirely given. Raises BadRequest if the family
    does not support the canvas or the requested way.
    """
    total, length = request.shape.frames, block_frames(system, request) or request.shape.frames
    releases, strict = release_states(system, request, canvas), enlarging is None
    way = honour(system, request, canvas.kind, strict=strict)
    if way != "continuation" and not rolls_out(system, request):
        return (Block(0, total, way, releases),)
    if enlarging is None:
        starts = [(start, length) for start in block_starts(system, request, canvas, length)]
    else:
        starts = _sharing_one_frame(system, total, length, enlarging.every)
    known = canvas.given_frames.longer(max(start + frames for start, frames in starts) - total)
    # A block uses the prompt of its middle frame, unless the family supports a prompt per frame.
    spans = None if system.family.sampling.defaults(system.config).prompt_spans else spans_of(request)
    blocks = []
    for start, frames in starts:
        kind = known.part(start, frames).kind
        if kind != "all" or canvas.held:
            way = honour(system, request, kind, one_pass=True, strict=strict)
            prompt = None if spans is None else spans.at(start + frames // 2)
            blocks.append(Block(start, frames, way, releases, prompt))
        known.give(start, frames)
    return tuple(blocks)


def _sharing_one_frame(system: System, total: int, length: int, every: int) -> list[tuple[int, int]]:
    """Return first frames and lengths of super-resolution blocks.

    Each starts at the last frame of the previous block that the small clip has. The last block has the smallest
    supported length.
    """
    step, time = (length - 1) // every * every, system.lattice.grid.time
    if step < 1:
        raise BadRequest(f"{system.name} handles {length} frames at a time, too few for --every {every}")
    return [(start, time.ceil(min(step + 1, total - start))) for start in range(0, max(total - 1, 1), step)]


def release_states(system: System, request: Request, canvas: Canvas) -> tuple[int, ...]:
    """Return the sampler state after which each piece of the canvas is released."""
    steps, levels, states = cast(int, request.steps), system.levels(request), []
    for piece in canvas.held:
        by, amount = piece.release.by, piece.release.amount
        if by == "strength":
            states.append(steps - edit_steps(steps, amount))
        elif by == "level":
            states.append(release_at_level(amount, levels))
        else:
            states.append(release_at_ratio(amount, system.process(request).schedule.time(levels.log_snr)))
    return tuple(states)


KINDS = {
    "nothing": "no given frames",
    "first": "a given first frame",
    "ends": "given first and last frames",
    "prefix": "given frames at the start",
    "suffix": "given frames at the end",
    "frames": "given frames in between",
    "region": "a given region",
    "all": "given frames throughout",
}
"""Descriptions of the kinds of `kinema.canvas.GivenFrames.kind`, for error messages."""


def honour(system: System, request: Request, kind: str, *, one_pass: bool = False, strict: bool = True) -> Way:
    """Choose how to hold the given pixels of a canvas of this kind.

    Unless ``strict``, a way that the family does not offer is replaced by the family's first. Continuation is a
    block-wise way (see `rollout`), so it is excluded if the sampler runs in ``one_pass``. Raises BadRequest if the
    family does not support the kind or the requested way.
    """
    ways, asked = system.family.sampling.honours(system.config, kind), request.honour
    if one_pass or request.window is not None:
        ways = tuple(way for way in ways if way != "continuation")
        asked = "auto" if one_pass and asked == "continuation" else asked  # blocks continue each other anyway
    if not ways:
        raise BadRequest(f"{system.name} does not support {KINDS[kind]}, which this {request.task} needs")
    if asked == "auto" or kind == "nothing":
        return cast(Way, ways[0])
    if asked not in ways and not strict:
        return cast(Way, ways[0])
    if asked not in ways:
        raise BadRequest(f"{system.name} does not support --honour {asked} here; it supports {', '.join(ways)}")
    return asked


def block_starts(system: System, request: Request, canvas: Canvas, length: int) -> list[int]:
    """Return the first frames of a clip's blocks, in sampling order.

    With continuation, blocks share one frame, the first block starts at the last given frame, and the last block may
    extend beyond the clip. Otherwise blocks share half their frames or a little more (whole latent frames), or
    ``overlap``, or what the family's options say, and the last ends with the clip.
    """
    total, honours = request.shape.frames, system.family.sampling.honours
    own = own_blocks(system, request)
    if own is not None:
        return list(range(0, total - own[1], length - own[1]))
    if request.honour == "continuation" and request.overlap not in (None, 1):
        raise BadRequest(f"overlap is {request.overlap}; continuation starts from one frame: leave --overlap out")
    if request.overlap in (None, 1) and request.honour in ("auto", "native", "continuation"):
        given = int(canvas.given_frames.whole.cumprod(0).sum())  # whole frames at the start
        continues = canvas.kind in ("nothing", "first", "prefix") and "continuation" in honours(system.config, "prefix")
        if continues:
            return list(range(max(given - 1, 0), total - 1, max(length - 1, 1)))
    step, stride = length - length // 2, system.lattice.grid.time.stride
    step = step // stride * stride or step  # whole latent frames are shared
    keep = length - step if request.overlap is None else request.overlap
    if not 0 < keep < length:
        raise BadRequest(f"overlap is {keep} frames; blocks of {length} share 1 to {length - 1}")
    starts = [min(s, total - length) for s in range(0, total - keep, length - keep)]
    backward = bool(canvas.given_frames.touched[-1]) and not bool(canvas.given_frames.touched[0])
    return starts[::-1] if backward else starts


def planning_canvas(work: StageRun) -> Canvas:
    """Return the canvas to plan memory for: the whole one, or a block with the frames that it shares."""
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


def choose_memory_plan(work: StageRun, taken: int = 0) -> MemoryPlan:
    """Choose the memory plan of a stage; other stages take ``taken`` bytes. Raises BadRequest if it does not fit."""
    if not work.stage.blocks:
        return MemoryPlan()
    canvas, measured = planning_canvas(work), work.stage.enlarging is not None
    return choose(work.system, work.stage.of(canvas.block), canvas, measured=measured, taken=taken)


def bytes_of_other_stages(works: Sequence[StageRun], number: int) -> int:
    """Return the bytes of other stages' weights while this one runs, unless they already count as used memory."""
    budgeted, taken = works[number].system.memory.budget is not None, 0
    for other in range(len(works)):
        system = works[other].system
        loaded = system.runtime.model is not None
        if other != number and (budgeted if loaded else other < number):
            taken += weight_bytes(system)
    return taken


def lora_notes(system: System) -> list[str]:
    """Return what the user should know of the LoRAs in use: what of their files has no effect."""
    return [note for file in system.loras.files for note in file.notes]


def precision_notes(system: System) -> list[str]:
    """Return the note on a precision that was chosen for the user, if any."""
    return [system.policy.note] if system.policy.note else []
