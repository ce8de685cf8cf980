"""``kinema replay``: the clip again, from the recipe that its file carries."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kinema import __version__
from kinema.cli import machine
from kinema.cli.options import Option, parse, with_defaults
from kinema.cli.output import Output
from kinema.cli.progress import JsonLines, display
from kinema.cli.verbs import MODEL, REPORTING, WRITING, model_options, open_model
from kinema.schema import BadRequest, Note, Phase, Request

ABOUT = "Make a clip again from the recipe in its metadata, and say whether it is the same to the bit."
CLIP = Option("clip", str, "", "clip written by kinema", positional=True)


def replay(words: Sequence[str]) -> int:
    """Exit code 0 when a clip was made, whether or not it equals the first; the answer is said."""
    told = parse([CLIP, *MODEL, *WRITING, *REPORTING], words, "kinema replay", ABOUT)
    if not told.get("clip"):
        raise BadRequest("kinema replay needs a clip: kinema replay ball.mp4")
    own = with_defaults([*WRITING, *REPORTING], told)
    from kinema.media.metadata import read_recipe

    path = Path(told["clip"])
    recipe = read_recipe(path)
    request = request_of(recipe, path)
    zoom = own["zoom"] if "zoom" in told else recipe.get("zoom", 1)
    output = Output(own["output"], f"{path.stem} replay", request.clips, own["overwrite"], own["contact_sheet"], zoom)
    output.check()
    with display(quiet=own["quiet"], json_events=own["json_events"]) as show:
        model = open_model(model_options({**as_it_was(recipe), **told}))
        for note in differences(recipe, model.system.weights.hash, request, model_told="model" in told):
            show(Note(note))
        clip = model.run(request, on_event=show)
        same = clip.recipe.get("frames_hash") == recipe.get("frames_hash")
        show(Phase("write"))
        paths = output.save(clip)
        if isinstance(show, JsonLines):
            show.write("saved", {"paths": [str(p) for p in paths], "same": same})
        else:
            sys.stdout.writelines(f"{p}\n" for p in paths)
    verdict = "the same to the bit" if same else "not the same to the bit"
    sys.stderr.write(f"kinema: {paths[0].name} is made of frames that are {verdict} as those of {path.name}\n")
    return 0


def as_it_was(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The model options that were in force: the model, its precision and the threads."""
    names = {long: short for short, long in machine.DTYPES.items()}
    told = {"model": recipe.get("model"), "dtype": names.get(recipe.get("dtype", "")), "threads": recipe.get("threads")}
    return {name: value for name, value in told.items() if value is not None}


def request_of(recipe: Mapping[str, Any], path: Path) -> Request:
    """The request inside a recipe, whether it was kept as a table or as its own JSON text."""
    told = recipe.get("request")
    if not told or not recipe.get("model"):
        raise BadRequest(f"the recipe in {path.name} names no model or no request, so it cannot be made again")
    text = told if isinstance(told, str) else json.dumps(told)
    try:
        return Request.from_json(text)
    except (TypeError, AttributeError, json.JSONDecodeError) as error:
        raise BadRequest(f"the recipe in {path.name} is damaged: {error}") from None


def differences(recipe: Mapping[str, Any], weights_hash: str, request: Request, *, model_told: bool) -> list[str]:
    """What is not as it was when the clip was made; other weights are refused unless asked for."""
    notes = []
    before = recipe.get("weights")
    if before and before != weights_hash:
        if not model_told:
            raise BadRequest(
                f"the weights of {recipe['model']} are not those the clip was made with ({_brief(weights_hash)} now, "
                f"{_brief(before)} then); pass --model to name the file, or to accept these"
            )
        notes.append(f"other weights than the clip's ({_brief(weights_hash)} now, {_brief(before)} then)")
    now, then = {"kinema": __version__, **machine.versions()}, dict(recipe.get("versions", {}))
    then["kinema"] = recipe.get("kinema", __version__)
    notes += [
        f"{name} is {now[name]} now and was {was} then" for name, was in then.items() if now.get(name, was) != was
    ]
    return notes + _changed_inputs(recipe, request)


def _changed_inputs(recipe: Mapping[str, Any], request: Request) -> list[str]:
    """Pictures and clips that the request names and that are other files than they were."""
    from kinema.generate import file_hash

    notes = []
    for name, before in recipe.get("inputs", {}).items():
        path = Path(getattr(request, name))
        if not path.exists():
            raise BadRequest(f"the clip was made from {path}, and that file is not there any more")
        if file_hash(path) != before:
            notes.append(f"{path} is not the file that the clip was made from")
    return notes


def _brief(weights_hash: str) -> str:
    """Enough of a hash to tell two apart by eye, without the name of what was hashed."""
    return weights_hash.rpartition(":")[2][:12]
