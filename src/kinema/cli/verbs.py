"""The verbs (generate, animate, …): command line to `Request`, one call of the Python API, one file written."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kinema.cli import machine, remote
from kinema.cli.document import DOCUMENT, with_document
from kinema.cli.options import parse, with_defaults
from kinema.cli.output import Output
from kinema.cli.progress import Display, JsonLines, display
from kinema.cli.remote import SERVER
from kinema.cli.stopping import KEEP, run_once
from kinema.events import Note, OnEvent, Phase, ignore
from kinema.options import Option, from_dataclass
from kinema.schema import TASK_FIELDS, BadRequest, Clip, Request, TaskName
from kinema.spans import spans_of
from kinema.verb_options import (
    CONTROL,
    DEFAULT_MODEL,
    EMBEDDINGS,
    GROUPS,
    IP_IMAGE,
    MODEL,
    MOTION,
    VERBS,
    request_options,
)

if TYPE_CHECKING:
    from kinema.api import Model
    from kinema.previews import PreviewFile

SEVERAL = ("controlnet", "ip-adapter")
"""Slots that take several files, each with a name."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model runs, and on which device."""

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


WRITING = [
    Option(
        "output",
        Path | None,
        None,
        "file to write: .mp4, .gif, .webp or .png (several frames as .png become a folder); by default named after the "
        "prompt",
        short="-o",
    ),
    Option("overwrite", bool, False, "replace existing files"),
    Option(
        "preview",
        Path | None,
        None,
        "image file (.png, or .webp for an animation) that shows the clip during sampling; rewritten up to 4 times a "
        "second, kept afterwards",
        metavar="FILE",
        path=True,
    ),
    Option("contact_sheet", bool, False, "also write all frames as one image"),
    Option("zoom", int, 1, "enlarge every pixel to N×N when saving"),
    Option("record_paths", bool, False, "record full paths of inputs and models in the recipe, not only names"),
    KEEP,
]
REPORTING = [
    Option("quiet", bool, False, "no progress; print only the paths written"),
    Option("json_events", bool, False, "print progress as JSON lines on stdout"),
]
CONFIG = Option("config", Path | None, None, "YAML, TOML or JSON file of options; the command line overrides it")


def animate(argv: Sequence[str]) -> int:
    return run("animate", argv)


def interpolate(argv: Sequence[str]) -> int:
    return run("interpolate", argv)


def extend(argv: Sequence[str]) -> int:
    return run("extend", argv)


def inpaint(argv: Sequence[str]) -> int:
    return run("inpaint", argv)


def edit(argv: Sequence[str]) -> int:
    return run("edit", argv)


def upscale(argv: Sequence[str]) -> int:
    return run("upscale", argv)


def run(task: TaskName, argv: Sequence[str]) -> int:
    """Run a verb and print the paths written."""
    with with_document(task, read_options(task, options_of(task), argv, "kinema")) as given:
        return run_given(task, given)


def options_of(task: TaskName) -> list[Option]:
    """All options of a verb."""
    return [*request_options(task), *MODEL, SERVER, *WRITING, *REPORTING, CONFIG, DOCUMENT]


def run_given(task: TaskName, given: Mapping[str, Any]) -> int:
    """`run` with the options of the command line."""
    settings = with_defaults([*WRITING, *REPORTING], given)
    request = request_from(task, given)
    output = output_for(request, settings)
    output.check()
    preview = preview_file(settings["preview"], output)
    with display(quiet=settings["quiet"], json_events=settings["json_events"]) as show:
        if given.get(SERVER.name) is None:
            clip = _run_here(model_options(given), request, output, settings, show, preview)
        else:
            service = remote.connect(given, options_of(task), additions(given.get("add", ())))
            request = remote.with_loras(request, lora_weights(given.get("lora", ())))
            clip = run_once(service, request, request, output, settings, show, preview)
        show(Phase("write"))
        paths = output.save(clip, show)
        if isinstance(show, JsonLines):
            show.write("saved", {"paths": [str(path) for path in paths]})
            return 0
    sys.stdout.writelines(f"{path}\n" for path in paths)
    return 0


def _run_here(  # noqa: PLR0917
    options: ModelOptions,
    request: Request,
    output: Output,
    settings: Mapping[str, Any],
    show: Display,
    preview: PreviewFile | None,
) -> Clip:
    model = open_model(options, on_event=show)
    clip = run_once(model, request, request, output, settings, show, preview)
    if model.system.weights.untrained:
        show(Note(f"{model.system.name} has no trained weights: the clip is noise"))
    return clip


def read_options(
    task: TaskName, options: Sequence[Option], argv: Sequence[str], command: str, about: str = ""
) -> dict[str, Any]:
    """`parse` for a verb, with its help page; an option that only other verbs have is refused with their names.

    ``command`` is what comes before the verb: "kinema", "kinema plan".
    """
    verb = VERBS[task]
    example = verb.example if command == "kinema" else verb.example.partition(" -o ")[0].replace("kinema", command, 1)
    others = {flag: [f"{command} {name}" for name in names] for flag, names in options_of_other_verbs(task).items()}
    return parse(options, argv, f"{command} {task}", about or verb.about, example, GROUPS, others)


def options_of_other_verbs(task: TaskName) -> dict[str, list[str]]:
    """Flags that ``task`` does not have, with the verbs that do."""
    by_name: dict[str, list[str]] = {}
    for verb, names in TASK_FIELDS.items():
        for name in names:
            by_name.setdefault(name, []).append(verb)
    options = from_dataclass(Request, [name for name in by_name if name not in TASK_FIELDS[task]])
    return {o.flag: by_name[o.name] for o in options}


def request_from(task: TaskName, given: Mapping[str, Any]) -> Request:
    """The request of these options; with other images or an image model, a single positional argument is the prompt."""
    if task == "interpolate" and {"image", "last_image", "video"} <= given.keys() and "prompt" not in given:
        given = {**given, "prompt": given["video"], "video": None}
    others = {"keyframes", "image_model"} & given.keys()
    if task == "animate" and "image" in given and others and "prompt" not in given:
        given = {**given, "prompt": given["image"], "image": None} if is_prompt(given["image"]) else given
    if given.get("motion") is not None:
        extra = given.get("extra", {})
        if "motion_bucket" in extra:
            raise BadRequest("--motion and --extra motion-bucket set the same option; give one of them")
        given = {**given, "extra": {**extra, "motion_bucket": given["motion"]}}
    if files := conditioning_files(given):
        extra = given.get("extra", {})
        if both := sorted(set(files) & set(extra)):
            raise BadRequest(f"{both[0]} is given twice, by its own option and by --extra; give it once")
        given = {**given, "extra": {**extra, **files}}
    names = {o.name for o in request_options(task)} - {MOTION.name, CONTROL.name, IP_IMAGE.name, EMBEDDINGS.name}
    return Request(task=task, **{name: value for name, value in given.items() if name in names})


def is_prompt(text: str) -> bool:
    """Whether text that could be a path is a prompt: no such file exists, and it has no file suffix."""
    try:
        exists = Path(text).exists()
    except OSError:  # too long for a file name
        exists = False
    return not exists and not re.search(r"\.\w{2,4}$", text)


def conditioning_files(given: Mapping[str, Any]) -> dict[str, Any]:
    """--control, --ip-image and --embeddings as family options: ``["depth=a.mp4"]`` is ``{"control.depth": …}``."""
    found: dict[str, list[str]] = {}
    for option in (CONTROL, IP_IMAGE):
        for text in given.get(option.name) or ():
            name, equals, path = text.partition("=")
            named = equals and name.replace("-", "_").isidentifier() and not Path(text).exists()
            key = f"{option.name}.{name.replace('-', '_')}" if named else option.name
            found.setdefault(key, []).append(path if named else text)
    if several := [key for key, files in found.items() if key.startswith(CONTROL.name) and len(files) > 1]:
        raise BadRequest(f"--control gives {len(found[several[0]])} clips for one ControlNet; give NAME=PATH for each")
    folder = given.get(EMBEDDINGS.name)
    folders = {} if folder is None else {EMBEDDINGS.name: folder}
    return {key: files[0] if len(files) == 1 else files for key, files in found.items()} | folders


def output_for(request: Request, settings: Mapping[str, Any]) -> Output:
    """Where the clip goes; without --output, the name comes from the prompt or from the first input file."""
    source, spans = next(iter(request.files().values()), None), spans_of(request)
    title = request.prompt or (spans.texts[0] if spans else "")
    title = title or (f"{Path(source).stem} {request.task}" if source else request.task)
    return Output(
        settings["output"], title, request.clips, settings["overwrite"], settings["contact_sheet"], settings["zoom"]
    )


def preview_file(path: Path | None, output: Output) -> PreviewFile | None:
    """The file of ``--preview``, checked before any work. Raises BadRequest if it is the clip's own file."""
    if path is None:
        return None
    from kinema.previews import PreviewFile

    if path.resolve() in {target.resolve() for target in (output.target, *output.targets(output.target))}:
        raise BadRequest(f"{path} is the clip's own file; give --preview another name")
    file = PreviewFile(path, output.overwrite)
    file.check()
    return file


def model_options(given: Mapping[str, Any]) -> ModelOptions:
    return ModelOptions(**with_defaults(MODEL, given))


def open_model(
    options: ModelOptions,
    *,
    overrides: Mapping[str, Any] | None = None,
    loras: Mapping[str | Path, float] | None = None,
    add: Mapping[str, str | Path] | None = None,
    on_event: OnEvent = ignore,
) -> Model:
    """`kinema.load` with the command line's options; a recipe supplies the overrides, LoRAs and add-ons not given."""
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
        on_event=on_event,
    )


def additions(values: Sequence[str]) -> dict[str, str | Path]:
    """``["motion=mm_sd_v15_v2.ckpt"]`` as add-on files by slot."""
    files: dict[str, str | Path] = {}
    for text in values:
        slot, equals, path = text.partition("=")
        if not (slot and equals and path):
            raise BadRequest(f"--add {text} has no slot; expected SLOT=PATH, such as motion=mm_sd_v15_v2.ckpt")
        if slot in files:
            more = f", or name each: --add {slot}.NAME=PATH" if slot in SEVERAL else ""
            raise BadRequest(f"--add {slot} is given twice; give it once{more}")
        files[slot] = path
    return files


def lora_weights(values: Sequence[str]) -> dict[str | Path, float]:
    """``["style.safetensors:0.8"]`` as files and weights; without a weight it is 1. File names may contain colons."""
    weights: dict[str | Path, float] = {}
    for text in values:
        path, colon, tail = text.rpartition(":")
        weight = _number(tail) if colon and path and not Path(text).exists() else None
        name = text if weight is None else path
        if name in weights:
            raise BadRequest(f"--lora {name} is given twice; give it once, with one weight")
        weights[name] = 1.0 if weight is None else weight
    return weights


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
