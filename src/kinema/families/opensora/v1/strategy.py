"""Mask strategies and loops of a request: its options in terms of `first_line.masks` and `first_line.loops`.

A number of loops stands for the clip's frames, and a prompt such as ``|0|a|2|b`` for prompts at frames: `settled`
writes them so, and the package generates the clip in blocks, each of which begins with the end of the one before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kinema.families.opensora.first_line import masks, prompt_file
from kinema.families.opensora.first_line.loops import Loops, given_v1_3
from kinema.families.opensora.first_line.masks import Cell, Group, Rules
from kinema.families.opensora.v1.config import Config
from kinema.media import read
from kinema.media.images import is_image
from kinema.schema import BadRequest, Request
from kinema.values import quoted

LENGTH = {"1.1": 4, "1.2": 5, "1.3": 5}
"""Frames that a loop begins with: of pixels in 1.1, else of latents."""
NUMBERED = re.compile(r"\|\s*-?\d+\s*\|")
"""A prompt that begins so has parts for loops."""
MOST_REFERENCES = 64


def references(extra: Mapping[str, Any]) -> tuple[str, ...]:
    """The files of ``reference_path``: a list, or text with ``;`` between them."""
    given = extra.get("reference_path", ())
    paths = given.split(";") if isinstance(given, str) else [str(given)] if isinstance(given, Path) else given
    if not isinstance(paths, list | tuple) or not all(isinstance(path, str | Path) for path in paths):
        raise BadRequest(f"reference_path is {quoted(given)}; expected files joined by ;")
    if any(not str(path).strip() for path in paths):
        raise BadRequest(f"reference_path is {quoted(given)}, which has an empty path; expected files joined by ;")
    return tuple(map(str, paths))


def groups(extra: Mapping[str, Any]) -> tuple[Group, ...]:
    """The groups of ``mask_strategy``; a lone number is read as one from the command line."""
    given = extra.get("mask_strategy", "")
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise BadRequest(f"mask_strategy is {quoted(given)}; expected groups of numbers, such as 0,0,-5,0,5")
    return masks.parse(str(given))


def rules(config: Config, extra: Mapping[str, Any]) -> Rules:
    if config.version == "1.1":
        return masks.V1_1
    return Rules(align=extra.get("align", config.align) or None)


def loops(config: Config, extra: Mapping[str, Any]) -> Loops | None:
    """None for a clip that is not made of loops."""
    count = extra.get("loop", 1)
    if config.version == "1.0" or count == 1:
        return None
    length, edit = extra.get("condition_frame_length", LENGTH[config.version]), extra.get("condition_frame_edit", 0.0)
    return Loops("1.1" if config.version == "1.1" else "1.2", count, length, float(edit))


def settled(config: Config, request: Request) -> Request:
    """The request with its references as a list, the frames of all its loops, and the prompt of each."""
    extra = dict(request.extra)
    if "reference_path" in extra:
        extra["reference_path"] = list(references(extra))
    request = replace(request, extra=extra)
    found = loops(config, extra)
    if found is not None and request.frames is None:
        request = replace(request, frames=found.total(config.frames))
    if request.prompt.startswith(prompt_file.FIRST):
        return _with_prompts(config, request, found)
    if NUMBERED.match(request.prompt):
        raise BadRequest(f"the prompt {quoted(request.prompt)} does not begin with loop 0; expected such as |0|a|2|b")
    return request


def _with_prompts(config: Config, request: Request, found: Loops | None) -> Request:
    if request.prompt_spans:
        raise BadRequest("the prompt begins with |0| and has parts for loops: leave prompt spans (--prompt-at) out")
    count = 1 if found is None else found.count
    first, *others = parts = prompt_file.per_loop(request.prompt, count)
    changed: dict[str, str] = {}
    if found is not None:
        frames = clip_frames(config, request, found)
        # A block has the prompt of its middle frame; where it can be, a prompt begins with its loop's new frames.
        into = min(found.dropped, frames // 2)
        starts = (number * (frames - found.dropped) + into for number in range(1, count))
        pairs = zip(starts, parts, others, strict=False)
        changed = {str(start): text for start, before, text in pairs if text != before}
    return replace(request, prompt=first, prompt_spans=changed)


def clip_frames(config: Config, request: Request, found: Loops) -> int:
    """The frames of each loop's clip, from those of the whole. Raises BadRequest if they are not a whole number."""
    total = request.frames or found.total(config.frames)
    frames, rest = divmod(total + (found.count - 1) * found.dropped, found.count)
    if rest or frames <= found.dropped or config.grid.time.ceil(frames) != frames:
        own = found.total(config.frames)
        raise BadRequest(
            f"{total} frames do not divide into {found.count} loops that share {found.dropped} frames; expected a "
            f"number such as {own}, for loops of {config.frames} frames"
        )
    return frames


def loop_of(config: Config, request: Request, start: int, frames: int) -> int:
    """Which loop the block of these frames is."""
    found = loops(config, request.extra)
    return 0 if found is None else start // (frames - found.dropped)


def reference_frames(config: Config, path: str) -> int:
    """How many frames of a reference are used: all that the codec can encode. Reads its header alone."""
    if "://" in path:
        raise BadRequest(f"the reference {quoted(path)} is an address; download it, and give the file")
    if not Path(path).exists():
        raise BadRequest(f"there is no reference {quoted(path)}; expected an image or a clip")
    frames = 1 if Path(path).is_file() and is_image(Path(path)) else read.probe(path).frames
    return next(count for count in range(frames, 0, -1) if config.grid.time.ceil(count) == count)


def applied(config: Config, extra: Mapping[str, Any], loop: int, frames: int) -> Sequence[Cell | None]:
    """What the strategy fills each latent frame of a loop of ``frames`` pixel frames with."""
    time = config.grid.time
    lengths = [time.latent(reference_frames(config, path)) for path in references(extra)]
    return masks.applied(groups(extra), loop, time.latent(frames), lengths, rules(config, extra))


def shown(config: Config, extra: Mapping[str, Any], loop: int, frames: int) -> Sequence[Cell | None]:
    """Which frame of which reference ``cond_type`` gives 1.3 at each latent frame of a loop of ``frames`` pixel frames;
    None elsewhere, and where a loop begins with the one before."""
    time, found = config.grid.time, loops(config, extra)
    lengths = [time.latent(reference_frames(config, path)) for path in references(extra)]
    count, length = (1, LENGTH["1.3"]) if found is None else (found.count, found.length)
    cells = given_v1_3(extra["cond_type"], loop, count, time.latent(frames), length, lengths)
    return [None if cell is None or cell.reference == len(lengths) else cell for cell in cells]


USES = ("mask_strategy", "cond_type")
"""What references are for: one of these."""


def _check_uses(extra: Mapping[str, Any]) -> str | None:
    """Which of `USES` the request has. Raises BadRequest for both, and for references without a use or the reverse."""
    used = [name for name in USES if name in extra]
    if len(used) > 1:
        raise BadRequest("mask_strategy and cond_type both place references: give one of them")
    if used and "reference_path" not in extra:
        raise BadRequest(f"{used[0]} applies only with reference_path: give both, or neither")
    if "reference_path" in extra and not used:
        raise BadRequest("reference_path applies only with mask_strategy, or cond_type in 1.3: give both, or neither")
    if "align" in extra and used != ["mask_strategy"]:
        raise BadRequest("align applies only with mask_strategy: leave it out")
    return used[0] if used else None


def check(config: Config, request: Request) -> None:
    """Raise BadRequest for a strategy that is none, or that points outside of the clip or of a reference."""
    extra, found = request.extra, loops(config, request.extra)
    frames = request.shape.frames if found is None else clip_frames(config, request, found)
    use = _check_uses(extra)
    if found is None and (name := next((n for n in extra if n.startswith("condition_frame_")), None)):
        raise BadRequest(f"{name} applies only with a loop of 2 or more: leave it out")
    if found is not None and request.task not in ("generate", "animate"):
        raise BadRequest(f"loop applies only to generate and animate: leave it out of {request.task}")
    if found is not None and (request.window is not None or request.overlap is not None or request.backward):
        raise BadRequest("loop sets what blocks share: leave --window, --overlap and --backward out")
    if use is None:
        return
    if request.task != "generate":
        raise BadRequest(f"{use} applies only to generate: leave it out of {request.task}")
    if request.window is not None or (found is None and frames > config.longest):
        raise BadRequest(f"{use} applies only to clips and loops of one block: leave --window out, or use loop")
    if len(references(extra)) > MOST_REFERENCES:
        raise BadRequest(f"there are {len(references(extra))} references; expected at most {MOST_REFERENCES}")
    count = 1 if found is None else found.count
    if late := [group for group in groups(extra) if group.loop >= count]:
        raise BadRequest(f"mask_strategy has a group for loop {late[0].loop}; expected loops 0 to {count - 1}")
    place = applied if use == "mask_strategy" else shown
    for loop in range(count):
        place(config, extra, loop, frames)
