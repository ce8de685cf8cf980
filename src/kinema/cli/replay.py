"""``kinema replay``: the clip again, from the recipe that its file carries."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kinema.cli.options import Option, parse, with_defaults
from kinema.cli.output import Output
from kinema.cli.progress import display
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
    zoom = int(recipe.get("zoom", 1)) if "zoom" not in told else own["zoom"]
    output = Output(own["output"], f"{path.stem} replay", request.clips, own["overwrite"], own["contact_sheet"], zoom)
    output.check()
    with display(quiet=own["quiet"], json_events=own["json_events"]) as show:
        model = open_model(model_options({"model": recipe.get("model"), **told}))
        for note in differences(recipe, model.system.weights.hash, model_told="model" in told):
            show(Note(note))
        clip = model.run(request, on_event=show)
        same = clip.recipe.get("frames_hash") == recipe.get("frames_hash")
        show(Phase("write"))
        paths = output.save(clip)
    sys.stdout.writelines(f"{p}\n" for p in paths)
    verdict = "the same to the bit" if same else "not the same to the bit"
    sys.stderr.write(f"kinema: {paths[0].name} is {verdict} as the frames {path.name} was made of\n")
    return 0


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


def differences(recipe: Mapping[str, Any], weights_hash: str, *, model_told: bool) -> list[str]:
    """What is not as it was when the clip was made; other weights are refused unless asked for."""
    notes = []
    before = recipe.get("weights")
    if before and before != weights_hash:
        if not model_told:
            raise BadRequest(
                f"the weights of {recipe['model']} are not those the clip was made with ({weights_hash[:12]} now, "
                f"{before[:12]} then); pass --model to name the file, or to accept these"
            )
        notes.append(f"other weights than the clip's ({weights_hash[:12]} now, {before[:12]} then)")
    for name, version in versions_now().items():
        then = recipe.get("versions", {}).get(name)
        if then and then != version:
            notes.append(f"{name} is {version} now and was {then} then")
    return notes


def versions_now() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    from kinema import __version__

    found = {"kinema": __version__}
    for name in ("torch", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
