"""``kinema generate``, which with ``--prompts FILE`` makes one clip for each prompt of a file in the model's format."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema.bounds import printable
from kinema.cli.document import with_document
from kinema.cli.options import with_defaults
from kinema.cli.output import Output
from kinema.cli.progress import JsonLines, display
from kinema.cli.remote import SERVER
from kinema.cli.stopping import run_once
from kinema.cli.verbs import (
    REPORTING,
    WRITING,
    model_options,
    open_model,
    options_of,
    output_for,
    read_options,
    request_from,
    run_given,
)
from kinema.events import Note, Phase
from kinema.options import Option
from kinema.schema import BadRequest, Request

if TYPE_CHECKING:
    from kinema.system import System


PROMPTS = Option(
    "prompts",
    Path | None,
    None,
    "file of prompts, one a line, in the model's own format: one clip each, named after the output or its prompt",
    metavar="FILE",
    path=True,
)


def generate(argv: Sequence[str]) -> int:
    read = read_options("generate", [*options_of("generate"), PROMPTS], argv, "kinema")
    with with_document("generate", read) as given:
        return run_given("generate", given) if given.get(PROMPTS.name) is None else generate_each(given)


def generate_each(given: Mapping[str, Any]) -> int:
    """Generate the clips one after another and print the paths written.

    Every prompt is settled first, so that a bad line is refused, by its number, before anything is generated.
    """
    settings = with_defaults([*WRITING, *REPORTING], given)
    if "prompt" in given:
        raise BadRequest("--prompts gives the prompts: leave the prompt itself out")
    if given.get(SERVER.name) is not None:
        raise BadRequest("--prompts is read by a model on this machine; with --server, give each prompt on its own")
    if settings["preview"] is not None:
        raise BadRequest("--preview shows one clip: leave it out with --prompts")
    with display(quiet=settings["quiet"], json_events=settings["json_events"]) as show:
        model = open_model(model_options(given), on_event=show)
        requests = requests_of(model.system, Path(given["prompts"]), given)
        outputs = outputs_of(requests, settings)
        written: list[Path] = []
        for number, (request, output) in enumerate(zip(requests, outputs, strict=True), 1):
            show(Note(f"clip {number} of {len(requests)}: {printable(request.prompt, 80)}"))
            clip = run_once(model, request, request, output, settings, show)
            show(Phase("write"))
            paths = output.save(clip, show)
            written += paths
            if isinstance(show, JsonLines):
                show.write("saved", {"paths": [str(path) for path in paths]})
            else:
                sys.stdout.writelines(f"{path}\n" for path in paths)
    return 0


def requests_of(system: System, path: Path, given: Mapping[str, Any]) -> list[Request]:
    """The request of each prompt. Raises BadRequest for one that the model refuses, naming its number."""
    from kinema.settle import settle, with_prompt_loras

    requests = []
    series = system.family.sampling.defaults(system.config).series
    if series is None:
        raise BadRequest("this model does not read prompt files; Open-Sora 1.1 to 1.3 do")
    prompts = series.read_prompts(path)
    for number, (prompt, options) in enumerate(prompts, 1):
        extra = given.get("extra", {})
        if both := sorted(set(extra) & set(options)):
            raise BadRequest(f"{both[0]} is given by --extra and by prompt {number} of {path.name}; give it once")
        request = request_from("generate", {**given, "prompt": prompt, "extra": {**extra, **options}})
        if request.seed is not None:  # so that the clips differ, and each can be generated again alone
            request = request.with_(seed=request.seed + number - 1)
        try:
            settle(system, with_prompt_loras(system, request))
        except BadRequest as error:
            raise BadRequest(f"prompt {number} of {printable(path.name, 80)}: {error}") from None
        requests.append(request)
    return requests


def outputs_of(requests: Sequence[Request], settings: Mapping[str, Any]) -> list[Output]:
    """Where the clips go: ``out-1.mp4``, ``out-2.mp4`` for the output ``out.mp4``, else names from the prompts.

    Raises BadRequest for an output that exists or cannot be written.
    """
    outputs = [output_for(request, settings) for request in requests]
    path, digits = settings["output"], len(str(len(requests)))
    if path is not None and len(requests) > 1:
        names = (
            path.with_name(f"{path.stem}-{number:0{digits}}{path.suffix}") for number in range(1, len(requests) + 1)
        )
        outputs = [replace(output, path=name) for output, name in zip(outputs, names, strict=True)]
    for output in outputs:
        output.check()
    return outputs
