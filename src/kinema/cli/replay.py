"""``kinema replay``: the clip again, from the recipe that its file carries."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema import __version__, registry
from kinema.cli import machine
from kinema.cli.options import Option, parse, with_defaults
from kinema.cli.output import Output
from kinema.cli.progress import JsonLines, display
from kinema.cli.verbs import MODEL, REPORTING, WRITING, model_options, open_model
from kinema.schema import BadRequest, Note, Phase, Request

if TYPE_CHECKING:
    from kinema.generate import Model
    from kinema.system import System

ABOUT = "Make a clip again from the recipe in its metadata, and say whether it is the same to the bit."
KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("model", "weights", "device", "dtype", "variant", "noise"), str),
    **dict.fromkeys(("overrides", "versions", "inputs", "extra_inputs"), Mapping),
    **dict.fromkeys(("threads", "zoom"), int),
    **dict.fromkeys(("loras", "added"), list),
    "request": (Mapping, str),
}
"""What each name of a recipe holds."""
CLIP = Option("clip", str, "", "clip written by kinema", positional=True)


def replay(words: Sequence[str]) -> int:
    """Exit code 0 when a clip was made, whether or not it equals the first; the answer is said."""
    told = parse([CLIP, *MODEL, *WRITING, *REPORTING], words, "kinema replay", ABOUT)
    if not told.get("clip"):
        raise BadRequest("kinema replay needs a clip: kinema replay ball.mp4")
    own = with_defaults([*WRITING, *REPORTING], told)
    from kinema.media.metadata import read_recipe

    path = Path(told["clip"])
    recipe = checked(read_recipe(path), path)
    request = request_of(recipe, path)
    zoom = own["zoom"] if "zoom" in told else recipe.get("zoom", 1)
    output = Output(own["output"], f"{path.stem} replay", request.clips, own["overwrite"], own["contact_sheet"], zoom)
    output.check()
    with display(quiet=own["quiet"], json_events=own["json_events"]) as show:
        model = reopened(recipe, told)
        for note in differences(recipe, model.system, request, model_told="model" in told):
            show(Note(note))
        if "lora" not in told:
            check_loras(recipe, model.system)
        for note in other_settings(recipe, model.system):
            show(Note(note))
        clip = model.run(
            request, on_event=show, on_settled=lambda told: output.check_clip(told.shape, told.fps or 0, show)
        )
        same = clip.recipe.get("frames_hash") == recipe.get("frames_hash")
        at_once = recipe.get("halves_at_once", False)
        if not same and clip.recipe.get("halves_at_once") != at_once:
            then = "at the same time, in more memory," if at_once else "one after the other"
            show(Note(f"both halves of guidance ran {then} then, which can change the last bits"))
        show(Phase("write"))
        paths = output.save(clip, show)
        if isinstance(show, JsonLines):
            show.write("saved", {"paths": [str(p) for p in paths], "same": same})
        else:
            sys.stdout.writelines(f"{p}\n" for p in paths)
    verdict = "the same to the bit" if same else "not the same to the bit"
    sys.stderr.write(f"kinema: {paths[0].name} is made of frames that are {verdict} as those of {path.name}\n")
    return 0


def checked(recipe: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The recipe, refused where what it says of the model and the machine is of another kind than we write."""
    for name, kind in KINDS.items():
        value = recipe.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise BadRequest(f"the recipe in {path.name} is damaged: its {name} is {value!r}")
    if recipe.get("noise") is not None:
        raise BadRequest(
            f"{path.name} was made from noise that its caller gave, which a recipe does not hold, "
            "so it cannot be made again"
        )
    return recipe


def reopened(recipe: Mapping[str, Any], told: Mapping[str, Any]) -> Model:
    """The model as it was, but for what the command line says; a device that is not here is refused."""
    options = model_options({**as_it_was(recipe), **told})
    if "device" not in told and options.device is not None:
        try:
            machine.device(options.device)
        except BadRequest as error:
            raise BadRequest(f"the clip was made on another machine: {error}; pass --device to choose one") from None
    loras: dict[str | Path, float] = {}
    for name, weight, _ in [] if "lora" in told else _loras(recipe):
        if not Path(registry.part(name)).exists():
            raise BadRequest(f"the clip was made with the LoRA {name}, and that file is not there now; pass --lora")
        loras[name] = weight
    add = {} if "add" in told else _added(recipe)
    for slot, file in add.items():
        if not Path(registry.part(file)).exists():
            raise BadRequest(f"the clip was made with {slot}={file}, and that is not there now; pass --add")
    return open_model(options, overrides=_tuples(recipe.get("overrides", {})), loras=loras, add=add)


def as_it_was(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The model options that were in force: the model, its device and precision, and the threads."""
    names = {long: short for short, long in machine.DTYPES.items()}
    told = {name: recipe.get(name) for name in ("model", "variant", "device", "threads")}
    told["dtype"] = names.get(recipe.get("dtype", ""))
    return {name: value for name, value in told.items() if value is not None}


def other_settings(recipe: Mapping[str, Any], system: System) -> list[str]:
    """What the command line changed of how the model ran: any of it can change the last bits."""
    now = {"device": str(system.device), "dtype": str(system.precision).removeprefix("torch.")}
    return [
        f"{name} is {value} now and was {recipe[name]} then"
        for name, value in now.items()
        if name in recipe and value.removesuffix(":0") != recipe[name].removesuffix(":0")
    ]


def _added(recipe: Mapping[str, Any]) -> dict[str, str | Path]:
    """Slot and file of what a recipe adds to its model; their hashes are part of the weights'."""
    try:
        return {str(each["slot"]): str(each["file"]) for each in recipe.get("added") or []}
    except (KeyError, TypeError):
        raise BadRequest("the recipe is damaged: its added are not slots with files") from None


def _loras(recipe: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """(file, weight, hash) of the LoRAs that a recipe names."""
    try:
        return [(str(each["file"]), float(each["weight"]), str(each["hash"])) for each in recipe.get("loras") or []]
    except (KeyError, TypeError, ValueError):
        raise BadRequest("the recipe is damaged: its loras are not files with weights and hashes") from None


def check_loras(recipe: Mapping[str, Any], system: System) -> None:
    """Refuse LoRA files that are others than they were; `--lora` accepts them."""
    before = {name: was for name, _, was in _loras(recipe)}
    for file in system.loras.files:
        was = before.get(registry.called(file.path), "")
        if file.hash != was:
            raise BadRequest(
                f"{file.path} is not the LoRA of the clip ({_brief(file.hash)} now, {_brief(was)} then); "
                "pass --lora to name the file, or to accept this one"
            )


def _tuples(value: Any) -> Any:
    """A config's values out of JSON, which knows no tuples."""
    if isinstance(value, Mapping):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


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


def differences(recipe: Mapping[str, Any], system: System, request: Request, *, model_told: bool) -> list[str]:
    """What is not as it was when the clip was made; other weights are refused unless asked for."""
    notes = []
    before, weights_hash = recipe.get("weights"), system.weights.hash
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
    return notes + _changed_inputs(recipe, system, request)


def _changed_inputs(recipe: Mapping[str, Any], system: System, request: Request) -> list[str]:
    """Pictures and clips that the request names, also in options of the family, and that are others than they were."""
    from kinema.generate import file_hash

    told = [(name, getattr(request, name, None), was) for name, was in (recipe.get("inputs") or {}).items()]
    own = system.family.files(request)
    told += [(name, name if name in own else None, was) for name, was in (recipe.get("extra_inputs") or {}).items()]
    notes = []
    for name, file, before in told:
        if not isinstance(file, str):
            raise BadRequest(f"the recipe is damaged: it has a hash of {name!r}, and its request names no such file")
        path = Path(file)
        if not path.exists():
            here = "" if path.is_absolute() else f", seen from {Path.cwd()}; replay where the clip was made"
            raise BadRequest(f"the clip was made from {path}, and that file is not there any more{here}")
        if file_hash(path) != before:
            notes.append(f"{path} is not the file that the clip was made from")
    return notes


def _brief(weights_hash: str) -> str:
    """Enough of a hash to tell two apart by eye, without the name of what was hashed."""
    return weights_hash.rpartition(":")[2][:12]
