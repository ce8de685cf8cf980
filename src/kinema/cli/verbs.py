"""The verbs: words to a `Request`, one call of the Python API, and a file."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kinema.cli import machine
from kinema.cli.options import Option, from_dataclass, parse, with_defaults
from kinema.cli.output import Output
from kinema.cli.progress import JsonLines, display
from kinema.cli.stopping import KEEP, run_once
from kinema.events import Note, Phase
from kinema.schema import TAKES, BadRequest, Request, TaskName
from kinema.spans import spans_of

if TYPE_CHECKING:
    from kinema.api import Model
    from kinema.previews import PreviewFile

DEFAULT_MODEL = "zoetrope"
SEVERAL = ("controlnet", "ip-adapter")
"""Slots that take several files, each with a name."""


@dataclass(frozen=True)
class Verb:
    """What its help says, and the fields of `Request` that are given without a name."""

    about: str
    positional: tuple[str, ...]


VERBS: dict[TaskName, Verb] = {
    "generate": Verb("A video from a sentence.", ("prompt",)),
    "animate": Verb(
        "A video that begins with a picture, ends with one, or has one at any frame (--keyframe, with or without an "
        "image), or that moves only in a region of it.",
        ("image", "prompt"),
    ),
    "interpolate": Verb("The frames between the given ones: of a clip, or between two pictures.", ("video", "prompt")),
    "extend": Verb("What comes after a clip, or before it.", ("video", "prompt")),
    "inpaint": Verb("New content in a region of a clip, or around it.", ("video", "prompt")),
    "edit": Verb("A clip remade from another one.", ("video", "prompt")),
    "upscale": Verb("A clip made larger, with frames between its own if wanted (--every).", ("video", "prompt")),
}


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model runs, and on what."""

    model: str = DEFAULT_MODEL
    variant: str | None = None
    lora: Sequence[str] = field(default_factory=list)
    add: Sequence[str] = field(default_factory=list)
    device: str | None = None
    dtype: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    threads: int | None = None
    offline: bool = False
    memory: str | None = None
    offload: Literal["auto", "none", "model", "block", "sequential"] = "auto"
    chunk_tokens: int | None = None
    compile: bool = False


MODEL = [
    Option(
        "model",
        str,
        DEFAULT_MODEL,
        "embedded name, family/preset, alias, hub id, folder or file",
        short="-m",
        path=True,
    ),
    Option("variant", str | None, None, "files of a folder (fp16), or the published model that weights are (svd-xt)"),
    Option(
        "lora",
        list[str],
        [],
        "LoRA file, and its weight after a colon where it is not 1; may be repeated",
        metavar="PATH[:WEIGHT]",
        path=True,
    ),
    Option(
        "add",
        list[str],
        [],
        "file in a slot of the model, such as a motion module in an image model (motion=FILE, controlnet.depth=FILE); "
        "may be repeated",
        metavar="SLOT=PATH",
        path=True,
    ),
    Option("device", str | None, None, "device, such as cpu, cuda:0 or mps; the GPU when there is one"),
    Option(
        "dtype",
        Literal["auto", "fp32", "bf16", "fp16"] | None,
        None,
        "precision to compute in; else the file's own on a GPU, fp32 on a CPU; auto is bf16 where that is native",
    ),
    Option("threads", int | None, None, "CPU threads"),
    Option("offline", bool, False, "fetch nothing: only files of this machine"),
    Option("memory", str | None, None, "how much may be used, such as 8GiB; most of what is free"),
    Option(
        "offload",
        Literal["auto", "none", "model", "block", "sequential"],
        "auto",
        "have networks, or blocks of them, take turns in memory; by itself only where a request would not fit",
    ),
    Option("chunk_tokens", int | None, None, "tokens that feed-forward layers take at a time"),
    Option("compile", bool, False, "compile the network's blocks: faster steps after a slow first one"),
]
WRITING = [
    Option(
        "output",
        Path | None,
        None,
        "file to write (.mp4 .gif .webp .png); several frames as .png are a folder of that name without the ending; "
        "else named by the prompt",
        short="-o",
    ),
    Option("overwrite", bool, False, "replace the output where it exists"),
    Option(
        "preview",
        Path | None,
        None,
        "picture file (.png, or .webp, which moves) rewritten up to 4 times a second with what is being made; it stays "
        "afterwards",
        metavar="FILE",
        path=True,
    ),
    Option("contact_sheet", bool, False, "also write all frames on one picture"),
    Option("zoom", int, 1, "enlarge every pixel to a square of this side when saving"),
    Option("record_paths", bool, False, "keep the full paths of inputs and models in the clip's recipe, beside names"),
    KEEP,
]
REPORTING = [
    Option("quiet", bool, False, "no progress, only the paths written"),
    Option("json_events", bool, False, "events as JSON lines on stdout"),
]
MOTION = Option(
    "motion", float | None, None, "how much moves, where a model is told it; short for --extra motion-bucket=N"
)
CONTROL = Option(
    "control",
    list[str],
    [],
    "ready control clip or picture (edges, depth, poses) for a ControlNet, with its NAME= where there are several; "
    "it is used as it is: no edges, depth or poses are found in pictures here; short for --extra control.NAME=PATH",
    metavar="[NAME=]PATH",
    path=True,
)
LOOK = Option(
    "ip_image",
    list[str],
    [],
    "picture for an IP-Adapter to look at, with its NAME= where there are several; may be repeated; short for "
    "--extra ip-image.NAME=PATH",
    metavar="[NAME=]PATH",
    path=True,
)
CONFIG = Option("config", Path | None, None, "YAML, TOML or JSON file of these options; the command line wins")


def generate(words: Sequence[str]) -> int:
    return run("generate", words)


def animate(words: Sequence[str]) -> int:
    return run("animate", words)


def interpolate(words: Sequence[str]) -> int:
    return run("interpolate", words)


def extend(words: Sequence[str]) -> int:
    return run("extend", words)


def inpaint(words: Sequence[str]) -> int:
    return run("inpaint", words)


def edit(words: Sequence[str]) -> int:
    return run("edit", words)


def upscale(words: Sequence[str]) -> int:
    return run("upscale", words)


def run(task: TaskName, words: Sequence[str]) -> int:
    """Make a clip and print where it is."""
    options = [*request_options(task), *MODEL, *WRITING, *REPORTING, CONFIG]
    told = parse(options, words, f"kinema {task}", VERBS[task].about)
    own = with_defaults([*WRITING, *REPORTING], told)
    request = request_from(task, told)
    output = output_for(request, own)
    output.check()
    preview = preview_file(own["preview"], output)
    with display(quiet=own["quiet"], json_events=own["json_events"]) as show:
        model = open_model(model_options(told))
        clip = run_once(model, request, request, output, own, show, preview)
        if model.system.weights.path is None:
            show(Note(f"{model.system.name} has no trained weights: what it makes is noise"))
        show(Phase("write"))
        paths = output.save(clip, show)
        if isinstance(show, JsonLines):
            show.write("saved", {"paths": [str(path) for path in paths]})
            return 0
    sys.stdout.writelines(f"{path}\n" for path in paths)
    return 0


def request_options(task: TaskName) -> list[Option]:
    """The options of a verb that are fields of `Request`: those of sampling, and what `TAKES` gives it."""
    others = {name for taken in TAKES.values() for name in taken} - set(TAKES[task])
    others |= {"task", "loras"}  # the verb itself, and what --lora says of the model
    order = [f.name for f in fields(Request) if f.name not in others]
    return [*from_dataclass(Request, order, positional=VERBS[task].positional), MOTION, CONTROL, LOOK]


def request_from(task: TaskName, told: Mapping[str, Any]) -> Request:
    """The request that was told; between two pictures, or keyframes, the one positional word is the prompt."""
    if task == "interpolate" and {"image", "last_image", "video"} <= told.keys() and "prompt" not in told:
        told = {**told, "prompt": told["video"], "video": None}
    if task == "animate" and {"image", "keyframes"} <= told.keys() and "prompt" not in told:
        told = {**told, "prompt": told["image"], "image": None} if is_prompt(told["image"]) else told
    if told.get("motion") is not None:
        extra = told.get("extra", {})
        if "motion_bucket" in extra:
            raise BadRequest("--motion and --extra motion-bucket are one option: give one of them")
        told = {**told, "extra": {**extra, "motion_bucket": told["motion"]}}
    if shown := shown_files(told):
        extra = told.get("extra", {})
        if both := sorted(set(shown) & set(extra)):
            raise BadRequest(f"{both[0]} is given twice, by an option of its own and by --extra; give it once")
        told = {**told, "extra": {**extra, **shown}}
    names = {o.name for o in request_options(task)} - {MOTION.name, CONTROL.name, LOOK.name}
    return Request(task=task, **{name: value for name, value in told.items() if name in names})


def is_prompt(word: str) -> bool:
    """Whether a word that could be a picture's file is none: there is no such file, and it does not end like one."""
    try:
        here = Path(word).exists()
    except OSError:  # longer than the name of any file
        here = False
    return not here and not re.search(r"\.\w{2,4}$", word)


def shown_files(told: Mapping[str, Any]) -> dict[str, Any]:
    """``["depth=a.mp4"]`` of --control and --ip-image as options of a family: ``{"control.depth": "a.mp4"}``."""
    found: dict[str, list[str]] = {}
    for option in (CONTROL, LOOK):
        for word in told.get(option.name) or ():
            name, equals, path = word.partition("=")
            named = equals and name.replace("-", "_").isidentifier() and not Path(word).exists()
            key = f"{option.name}.{name.replace('-', '_')}" if named else option.name
            found.setdefault(key, []).append(path if named else word)
    if several := [key for key, files in found.items() if key.startswith(CONTROL.name) and len(files) > 1]:
        raise BadRequest(f"--control gives {len(found[several[0]])} clips for one ControlNet; give NAME=PATH for each")
    return {key: files[0] if len(files) == 1 else files for key, files in found.items()}


def output_for(request: Request, own: Mapping[str, Any]) -> Output:
    source, spans = next(iter(request.files().values()), None), spans_of(request)
    title = request.prompt or (spans.texts[0] if spans else "")
    title = title or (f"{Path(source).stem} {request.task}" if source else request.task)
    return Output(own["output"], title, request.clips, own["overwrite"], own["contact_sheet"], own["zoom"])


def preview_file(path: Path | None, output: Output) -> PreviewFile | None:
    """The file of ``--preview``, checked before any work. Raises BadRequest where the clip itself goes there."""
    if path is None:
        return None
    from kinema.previews import PreviewFile

    if path.resolve() in {target.resolve() for target in (output.wanted, *output.targets(output.wanted))}:
        raise BadRequest(f"{path} is the clip's own file; give --preview another name")
    file = PreviewFile(path, output.overwrite)
    file.check()
    return file


def model_options(told: Mapping[str, Any]) -> ModelOptions:
    return ModelOptions(**with_defaults(MODEL, told))


def open_model(
    options: ModelOptions,
    *,
    overrides: Mapping[str, Any] | None = None,
    loras: Mapping[str | Path, float] | None = None,
    add: Mapping[str, str | Path] | None = None,
) -> Model:
    """`kinema.load` with the options of the command line, and with what a recipe says besides."""
    machine.set_threads(options.threads)
    device, dtype = machine.device(options.device), machine.dtype(options.dtype)
    loras = lora_weights(options.lora) or loras
    from kinema.api import load

    return load(
        options.model,
        variant=options.variant,
        device=device,
        dtype=dtype,
        offline=options.offline or None,
        overrides=overrides,
        loras=loras,
        add=additions(options.add) or add,
        offload=options.offload,
        memory=options.memory,
        chunk_tokens=options.chunk_tokens,
        compile=options.compile,
    )


def additions(words: Sequence[str]) -> dict[str, str | Path]:
    """``["motion=mm_sd_v15_v2.ckpt"]`` as slots and files."""
    told: dict[str, str | Path] = {}
    for word in words:
        slot, equals, path = word.partition("=")
        if not (slot and equals and path):
            raise BadRequest(f"--add {word} names no slot; expected SLOT=PATH, such as motion=mm_sd_v15_v2.ckpt")
        if slot in told:
            more = f", or name each: --add {slot}.NAME=PATH" if slot in SEVERAL else ""
            raise BadRequest(f"--add {slot} is given twice; give it once{more}")
        told[slot] = path
    return told


def lora_weights(words: Sequence[str]) -> dict[str | Path, float]:
    """``["style.safetensors:0.8"]`` as files and weights; 1 where none is told, and for a name that has a colon."""
    weights: dict[str | Path, float] = {}
    for word in words:
        path, colon, tail = word.rpartition(":")
        weight = _number(tail) if colon and path and not Path(word).exists() else None
        name = word if weight is None else path
        if name in weights:
            raise BadRequest(f"--lora {name} is given twice; give it once, with one weight")
        weights[name] = 1.0 if weight is None else weight
    return weights


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
