"""Settle a request: fill in the defaults of the task and the model, and a seed, or refuse it.

Only the headers of media files are read: no pixels and no weights.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from kinema import registry, spans
from kinema.bounds import first_names, printable
from kinema.conditioning.prompts import lora_tags
from kinema.conditioning.prompts.signs import unread
from kinema.deprecated import renamed
from kinema.diffusion import samplers
from kinema.diffusion.freeinit import FreeInit
from kinema.diffusion.samplers import SAMPLERS
from kinema.diffusion.schedules import edit_steps
from kinema.events import Note, OnEvent, ignore
from kinema.schema import FREE_INIT, TASK_FIELDS, BadRequest, Request, flag, plain_number
from kinema.system import System
from kinema.tasks import TASKS
from kinema.tasks.inputs import require_prompt
from kinema.values import counted, quoted

WINDOW_OPTIONS = ("window_places", "window_weights", "window_stride", "window_in", "noise_type")


def settle(system: System, request: Request, on_event: OnEvent = ignore) -> Request:
    """Return the request with the task's and the model's defaults and a seed.

    Raises BadRequest for options that the task does not use, rather than ignoring them. Settling is idempotent.
    """
    request, notes = renamed(request)
    for note in notes:
        on_event(Note(note))
    if request.task not in TASKS:
        raise BadRequest(f"there is no task {request.task!r}; expected one of {', '.join(TASKS)}")
    blank = Request()
    for name in sorted({field for names in TASK_FIELDS.values() for field in names} - set(TASK_FIELDS[request.task])):
        if getattr(request, name) != getattr(blank, name):
            raise BadRequest(f"{request.task} does not support {flag(name)}: leave it out")
    if request.task in ("generate", "edit") and system.family.sampling.defaults(system.config).takes_prompt:
        require_prompt(request)
    request = with_defaults(system, TASKS[request.task].plan(request), on_event)
    if request.loop and request.task == "generate" and not (request.window and request.window < request.shape.frames):
        raise BadRequest("generate with --loop needs windows that wrap around: give a --window shorter than the clip")
    in_blocks = rolls_out(system, replace(request, frames=system.lattice.grid.time.ceil(request.shape.frames)))
    if request.overlap is not None and request.window is None and not in_blocks:
        limit = f" of more than {system.lattice.max_frames} frames" if system.lattice.max_frames else ""
        raise BadRequest(f"--overlap applies only to windows and to block-wise clips{limit}: leave it out")
    check_length(request)
    if request.super_resolution_weight != blank.super_resolution_weight and request.task != "upscale":
        if request.super_resolution is None:
            raise BadRequest("--super-resolution-weight applies only with --super-resolution or upscale: leave it out")
    check_prompts(system, request, in_blocks=in_blocks)
    if request.colours != "free" and request.task in ("generate", "edit") and not in_blocks:
        raise BadRequest("--colours applies only to clips with given frames and to block-wise clips: leave it out")
    check_sampling(system, request)
    note_branches(system, request, on_event)
    free_init(system, request)
    if request.task == "edit" and request.strength > 0 and not edit_steps(cast(int, request.steps), request.strength):
        what = f"strength {request.strength:g} of {request.steps} steps is less than one step"
        on_event(Note(f"{what}, so the clip is not changed: give more steps or a higher strength"))
    if request.seed is None:
        request = replace(request, seed=secrets.randbelow(2**31))
    return request


def sized(system: System, request: Request) -> Request:
    """Return the request with the height and width of its named size. Raises BadRequest for an unknown name."""
    if request.size is None:
        return request
    sizes = system.family.sampling.defaults(system.config).sizes
    if request.height is not None or request.width is not None:
        raise BadRequest("--size sets height and width: give it, or --height and --width")
    if not sizes:
        raise BadRequest(f"{system.name} has no named sizes: give --height and --width")
    if request.size not in sizes:
        raise BadRequest(registry.unknown_name(f"size of {system.name}", request.size, sizes))
    height, width = sizes[request.size]
    return replace(request, size=None, height=height, width=width)


def with_defaults(system: System, request: Request, on_event: OnEvent = ignore) -> Request:
    """Return the request with the model's defaults and its sides snapped to the model's lattice, with notes.

    The frame count is not snapped: a clip is generated at the lattice's next count and cut, with a note. Raises
    BadRequest for requests that the family does not support. Needs no weights.
    """
    own, lattice = system.family.sampling.defaults(system.config), system.lattice
    for note in system.notes:
        on_event(Note(note))
    request = sized(system, request)
    request = request if own.series is None else own.series.settled(request)
    request = with_prompt_syntax(system, request, on_event)

    def snapped(what: str, asked: int, value: int) -> int:
        if asked != value:
            on_event(Note(f"{what} {asked} snapped to {value}, the nearest that {system.name} supports"))
        return value

    height, width, window = request.height or own.height, request.width or own.width, request.window
    if window is not None:
        window = snapped("window", window, lattice.grid.time.ceil(window))
        if lattice.max_frames and window > lattice.max_frames:
            raise BadRequest(f"window is {window} frames; {system.name} handles at most {lattice.max_frames} at a time")
        if request.overlap is not None and request.overlap >= window:
            raise BadRequest(f"overlap is {request.overlap}; expected less than the window of {window} frames")
    if request.window_in == "attention" and not own.attention_windows:
        raise BadRequest(f"{system.name} does not support --window-in attention: leave it out")
    sampler = request.sampler or own.sampler
    if sampler not in SAMPLERS:
        raise BadRequest(registry.unknown_name("sampler", sampler, SAMPLERS))
    frames = request.frames or own.frames
    if frames > 1 and (generated := lattice.grid.time.ceil(frames)) != frames:
        on_event(
            Note(
                f"{system.name} generates {generated} frames, the next supported count, and the clip is cut to {frames}"
            )
        )
    if own.windows and window is None and lattice.max_frames and frames > lattice.max_frames:
        window, overlap = own.windows
        weights = "flat" if request.window_weights == Request().window_weights else request.window_weights
        overlap = overlap if request.overlap is None else request.overlap
        request = replace(request, overlap=overlap, window_weights=weights)
    unguided = request.guidance is None and request.guidance_end is None
    request = replace(
        request,
        frames=frames,
        window=window,
        height=snapped("height", height, lattice.snap_side(height)),
        width=snapped("width", width, lattice.snap_side(width)),
        fps=request.fps or own.fps,
        steps=request.steps or own.steps,
        sampler=sampler,
        guidance=own.guidance if request.guidance is None else request.guidance,
        guidance_end=own.guidance_end if unguided else request.guidance_end,
        guidance_interval=request.guidance_interval or own.guidance_interval,
    )
    system.family.sampling.check(system.config, request)
    return request


def prompts_of(request: Request) -> list[str]:
    """Return a request's prompts: its own, those of spans and the negative one."""
    return [request.prompt, *request.prompt_spans.values(), request.negative_prompt]


def with_prompt_syntax(system: System, request: Request, on_event: OnEvent = ignore) -> Request:
    """Return the request with the syntax of its prompts, and with the files that they name.

    Emits a note on signs that the syntax does not read. Raises BadRequest for a syntax that the model lacks.
    """
    own, name = system.family.sampling.defaults(system.config), system.name
    syntaxes = ("plain",) if own.prompts is None else own.prompts.syntaxes
    syntax = request.prompt_syntax or syntaxes[0]
    if syntax not in syntaxes:
        raise BadRequest(f"{name} takes only plain prompts, without weights or steps: leave --prompt-syntax out")
    if own.takes_prompt and (found := [sign for text in prompts_of(request) for sign in unread(text, syntax)]):
        reader = f"{name} takes plain prompts and" if len(syntaxes) == 1 else f"--prompt-syntax {syntax}"
        on_event(Note(f"{reader} reads {', '.join(dict.fromkeys(found))} as words"))
    loras = system.loras.files
    if own.prompts is not None:
        return own.prompts.settled(replace(request, prompt_syntax=syntax), loras, on_event)
    for file in loras:
        if file.embeddings:
            count, where = counted(len(file.embeddings), "embedding"), printable(file.path.name, 100)
            on_event(
                Note(f"{where} contains {count} ({first_names(list(file.embeddings))}), which {name} does not use")
            )
    return request


def with_prompt_loras(system: System, request: Request, on_event: OnEvent = ignore) -> Request:
    """Return the request with the LoRAs that its prompts name among its ``loras``, and prompts without their names.

    Raises BadRequest for a LoRA that is not in ``lora_folder``, is given twice, or is in the negative prompt.
    """
    if lora_tags.tags(request.negative_prompt):
        raise BadRequest("the negative prompt names a LoRA, which would act on both prompts; name it in the prompt")
    named = lora_tags.tags(" ".join(prompts_of(request)))
    if not named:
        if request.lora_folder is not None:
            on_event(Note("--lora-folder is not used: no prompt names a LoRA as <lora:NAME:WEIGHT>"))
        return replace(request, lora_folder=None)
    files = lora_tags.files_of(named, request.lora_folder)
    own = {str(file.path): file.weight for file in system.runtime.own_loras}
    loras = own if request.loras is None else dict(request.loras)
    if twice := {Path(file).resolve() for file in files} & {Path(file).resolve() for file in loras}:
        raise BadRequest(f"the LoRA {min(twice).name} is given by its file and in the prompt; give it once")
    without = {frames: lora_tags.without_tags(text) for frames, text in request.prompt_spans.items()}
    prompt = lora_tags.without_tags(request.prompt)
    return replace(request, prompt=prompt, prompt_spans=without, loras=loras | files, lora_folder=None)


def check_sampling(system: System, request: Request) -> None:
    """Raise BadRequest for options that the sampler lacks, and for spacings that the model's noise levels lack."""
    sampler_options(system, request)
    if request.spacing is not None or request.karras:
        system.levels(request)


def note_branches(system: System, request: Request, on_event: OnEvent) -> None:
    """Emit a note on prompts and options of guidance that change nothing at the request's guidance scale."""
    blank, own = Request(), system.family.sampling.defaults(system.config)
    # Guidance may change over the frames of the lattice.
    branches = system.guidance(replace(request, frames=system.lattice.grid.time.ceil(request.shape.frames))).branches
    unused = []
    if "positive" not in branches and request.prompt.strip():
        unused.append("the prompt")
    if "negative" not in branches:
        names = ["negative_prompt", "guidance_rescale"]
        # The model's own interval is in a settled request too.
        names += ["guidance_interval"] if request.guidance_interval != own.guidance_interval else []
        unused += [flag(name) for name in names if getattr(request, name) != getattr(blank, name)]
    if unused:
        scale = plain_number(cast(float, request.guidance))
        verb = "is" if len(unused) == 1 else "are"
        on_event(Note(f"{' and '.join(unused)} {verb} not used, since the guidance scale is {scale}"))


def sampler_options(system: System, request: Request) -> dict[str, float]:
    """Return the request's sampler options over the model's. Raises BadRequest for options the sampler lacks."""
    own = system.family.sampling.defaults(system.config)
    name = request.sampler or own.sampler
    given = dict(request.sampler_options) | ({} if request.eta is None else {"eta": request.eta})
    known = samplers.options(name)
    for option, value in given.items():
        if option not in known:
            raise BadRequest(f"sampler {name} has no option {option}; it has {', '.join(known) or 'no options'}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise BadRequest(f"sampler option {option} is {quoted(value)}; expected a number, 0 or more")
    return {**(own.options if name == own.sampler else {}), **given}


def rolls_out(system: System, request: Request) -> bool:
    """Whether the clip exceeds the frames of a block and is generated block by block."""
    longest = block_frames(system, request)
    return bool(longest) and request.shape.frames > cast(int, longest) and request.window is None


def block_frames(system: System, request: Request) -> int | None:
    """The frames of a block: those of the family's options, or the model's limit; None if there is neither."""
    own = own_blocks(system, request)
    return system.lattice.max_frames if own is None else own[0]


def own_blocks(system: System, request: Request) -> tuple[int, int] | None:
    """The frames of a block and those that it shares with the one before, where the family's options say so."""
    series = system.family.sampling.defaults(system.config).series
    return None if series is None else series.blocks(request)


def check_length(request: Request) -> None:
    """Raise BadRequest for options of windows or FreeInit without them, and for options that conflict."""
    blank = Request()
    for main, options in (("window", WINDOW_OPTIONS), ("free_init", FREE_INIT[1:])):
        for name in options if getattr(request, main) is None else ():
            if getattr(request, name) != getattr(blank, name):
                raise BadRequest(f"{flag(name)} applies only with {flag(main)}: give {flag(main)}, or leave it out")
    if request.window_stride > 1 and request.window_places != "uniform":
        raise BadRequest("--window-stride needs --window-places uniform: give it, or leave --window-stride out")
    if request.window_in == "attention" and request.window_places != "static":
        raise BadRequest("--window-in attention supports only static windows: leave --window-places out")


def check_prompts(system: System, request: Request, *, in_blocks: bool) -> None:
    """Raise BadRequest for invalid prompt spans, and for models that cannot change the prompt over this clip."""
    spans.check(request)
    own = system.family.sampling.defaults(system.config)
    if not request.prompt_spans or own.prompt_spans:
        return
    if not own.takes_prompt:
        raise BadRequest(f"{system.name} does not support prompts: leave prompt spans (--prompt-at) out")
    if not in_blocks and not in_windows(request):
        most = f" up to {longest} frames" if (longest := system.lattice.max_frames) else ""
        raise BadRequest(
            f"{system.name} uses one prompt for clips{most}: give a --window shorter than the clip to change the "
            "prompt, or leave prompt spans (--prompt-at) out"
        )


def in_windows(request: Request) -> bool:
    """Whether the network runs on windows of the clip."""
    window = request.window
    return window is not None and request.window_in == "denoiser" and window < request.shape.frames


def free_init(system: System, request: Request) -> FreeInit | None:
    """Return the FreeInit filter that derives the noise of each later pass, if the request uses FreeInit."""
    if request.free_init is None:
        return None
    end = system.process(request).schedule.level(torch.ones(1, dtype=torch.float64))
    return FreeInit(end, request.free_init_filter, request.free_init_order, request.free_init_stop)
