"""``kinema replay``: generate a clip again from the recipe in its file."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema import __version__, registry
from kinema.bounds import printable
from kinema.cli import machine
from kinema.cli.options import parse, with_defaults
from kinema.cli.output import Output
from kinema.cli.progress import JsonLines, display
from kinema.cli.requirements import ReplayInputs, Requirements, replay_inputs, requirements_of, weights_of
from kinema.cli.stopping import run_once
from kinema.cli.verbs import GROUPS, MODEL, REPORTING, WRITING, model_options, open_model, preview_file
from kinema.events import Note, OnEvent, Phase, ignore
from kinema.options import Option
from kinema.schema import BadRequest, flag

if TYPE_CHECKING:
    from kinema.api import Model
    from kinema.system import System

ABOUT = (
    "Generate a clip again from the recipe in its metadata, and report whether its frames are identical to the last "
    "bit. A recipe may open only models that ship with Kinema and files in the Hugging Face cache with the recorded "
    "hash; give everything else with --input, --model, --lora and --add."
)
EXAMPLE = "kinema replay box.mp4 --input image=photo.png -o again.mp4"
REPLAY_GROUPS = {
    "main options": ("output", "input", "model", "image_model", "super_resolution", "allow_download"),
    **{heading: names for heading, names in GROUPS.items() if heading not in ("main options", "super-resolution")},
}
MAX_THREADS = 16
"""Threads per core that a recipe may ask for."""
CLIP = Option("clip", str, "", "clip written by kinema", positional=True, path=True)
OTHER_DEFAULTS = {
    "model": "another model or weight file than the recipe's",
    "output": "file to write: .mp4, .gif, .webp or .png; by default named after the clip",
    "device": "cpu, cuda:0, mps, …; by default the recorded one",
    "dtype": "compute precision; by default the recorded one",
    "zoom": "enlarge every pixel to N×N when saving; by default the recorded one",
}
"""Help of the options whose default is the recipe's value."""
INPUTS = [
    Option(
        "input",
        list[str],
        [],
        "an image or clip that the clip was generated from: NAME is the option it was passed to (image=PATH, "
        '"keyframe 8=PATH") or its file name; a different file is reported; may be repeated',
        metavar="NAME=PATH",
        path=True,
    ),
    Option(
        "image_model",
        str | None,
        None,
        "model that generated the first frame, if it does not ship with Kinema",
        metavar="NAME|PATH",
        path=True,
    ),
    Option(
        "super_resolution",
        str | None,
        None,
        "model of the super-resolution stage, if it does not ship with Kinema",
        metavar="NAME|PATH",
        path=True,
    ),
    Option("allow_download", bool, False, "download models that the recipe names and the cache lacks"),
]


def replay(argv: Sequence[str]) -> int:
    """Exit code 0 if a clip was generated, whether or not it equals the first; stderr states which."""
    given = parse(replay_options(), argv, "kinema replay", ABOUT, EXAMPLE, REPLAY_GROUPS)
    if not given.get("clip"):
        raise BadRequest("kinema replay needs a clip: kinema replay ball.mp4")
    if given.get("offline") and given.get("allow_download"):
        raise BadRequest("--offline and --allow-download exclude each other; give one of them")
    settings = with_defaults([*WRITING, *REPORTING], given)
    from kinema.media.metadata import read_recipe
    from kinema.recipes import base_of, checked, replayed_stages, requests_of

    path = Path(given["clip"])
    recipe = checked(read_recipe(path), path)
    requests = requests_of(recipe, path)
    zoom = settings["zoom"] if "zoom" in given else recipe.get("zoom", 1)
    output = Output(
        settings["output"],
        f"{path.stem} replay",
        requests[0].clips,
        settings["overwrite"],
        settings["contact_sheet"],
        zoom,
    )
    output.check()
    preview = preview_file(settings["preview"], output)
    with display(quiet=settings["quiet"], json_events=settings["json_events"]) as show:
        requirements = requirements_of(recipe, requests)
        variant = {"variant": base_of(recipe).get("variant")}
        inputs = replay_inputs(requirements, requests, {**variant, **given}, path)
        if any(each.source != "ships" for each in requirements):
            show(Note(requirements.summary()))
        model = reopened(recipe, inputs, given, show)
        changes = differences(recipe, requirements, model.system, given)
        for note in (*inputs.notes, *changes, *_other_stage_differences(recipe, inputs, model, given)):
            show(Note(note))
        base = inputs.requests[1 if base_of(recipe) is not recipe["stages"][0] else 0]
        clip = run_once(model, replayed_stages(recipe, inputs.requests), base, output, settings, show, preview)
        same, cause = compared(recipe, clip.recipe)
        if cause:
            show(Note(cause))
        show(Phase("write"))
        paths = output.save(clip, show)
        if isinstance(show, JsonLines):
            show.write("saved", {"paths": [str(p) for p in paths], "same": same})
        else:
            sys.stdout.writelines(f"{p}\n" for p in paths)
    number = recipe.get("clip", 0) if isinstance(recipe.get("clip", 0), int) else 0
    replayed = paths[min(number, len(paths) - 1)]
    result = about_partial(recipe["partial"], path) if "partial" in recipe else verdict(same, replayed, path)
    sys.stderr.write(f"kinema: {result}\n")
    return 0


def replay_options() -> list[Option]:
    """The options of a replay; those in `OTHER_DEFAULTS` have no default of their own."""
    options = [CLIP, *INPUTS, *MODEL, *WRITING, *REPORTING]
    return [replace(o, default=None, help=OTHER_DEFAULTS[o.name]) if o.name in OTHER_DEFAULTS else o for o in options]


def compared(recipe: Mapping[str, Any], replayed: Mapping[str, Any]) -> tuple[bool | None, str]:
    """(whether the frames are identical, None if the recipe has no hash; a known cause if they differ)."""
    before, branches = recipe.get("frames_hash"), _branches(recipe)
    same = replayed.get("frames_hash") == before if before else None
    if same is not False or _branches(replayed) == branches:
        return same, ""
    how = f"{branches} for the first clip and {_branches(replayed)} for the second"
    return same, f"guidance branches ran {how}; this can change the last bits"


def _branches(recipe: Mapping[str, Any]) -> str:
    """How the guidance branches ran; older recipes say only whether they were in memory together."""
    from kinema.recipes import base_of

    memory = base_of(recipe).get("memory", {})
    return str(memory.get("branches", "in parallel" if memory.get("at_once") else "one by one"))


def verdict(same: bool | None, replayed: Path, original: Path) -> str:
    """The last line of a replay: whether the frames are identical; ``same`` is None if that is unknown."""
    one, other = printable(replayed.name, 100), printable(original.name, 100)
    if same is None:
        return f"{other} records no frame hash, so {one} cannot be compared with it"
    how = "are identical to" if same else "are not identical to"
    return f"the frames of {one} {how} those of {other}, bit for bit"


def about_partial(partial: Mapping[str, Any], original: Path) -> str:
    """The last line of a replay of a partial clip."""
    step = f"step {partial.get('step', 0):,} of {partial.get('steps', 0):,}"
    name = printable(original.name, 100)
    return (
        f"{name} is a partial clip, cancelled at {step}; this replay generated the whole clip, which is not bit-equal "
        "to it"
    )


# ---------------------------------------------------------------------------------------- opening


def reopened(
    recipe: Mapping[str, Any], inputs: ReplayInputs, given: Mapping[str, Any], on_event: OnEvent = ignore
) -> Model:
    """The model with the recorded options, overridden by the command line. Raises BadRequest for a missing device."""
    overriding = {name: value for name, value in given.items() if name not in ("lora", "add")}
    offline = not given.get("allow_download")
    options = model_options({**as_it_was(recipe), **overriding, "model": inputs.model, "offline": offline})
    if "device" not in given and options.device is not None:
        try:
            machine.device(options.device)
        except BadRequest as error:
            message = f"the clip was generated on another machine: {error}; choose a device with --device"
            raise BadRequest(message) from None
    from kinema.recipes import base_of

    overrides = _tuples(base_of(recipe).get("overrides") or {})
    return open_model(options, overrides=overrides, loras=inputs.loras, add=inputs.add, on_event=on_event)


def as_it_was(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded model options: device, precision, variant; threads and compilation if this machine supports them."""
    names = {long: short for short, long in machine.dtypes().items()}
    options = {name: recipe.get(name) for name in ("device", "threads")}
    from kinema.recipes import base_of

    options["variant"] = base_of(recipe).get("variant")
    options["dtype"] = names[recipe.get("dtype", "float32")]
    if (options["threads"] or 0) > MAX_THREADS * (os.cpu_count() or 1):
        del options["threads"]
    options["compile"] = bool(recipe.get("compiled")) and machine.can_compile(options["device"])
    return {name: value for name, value in options.items() if value is not None}


def _tuples(value: Any) -> Any:
    """A config read from JSON, with its lists as tuples."""
    if isinstance(value, Mapping):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# -------------------------------------------------------------------------------------- comparing


def differences(
    recipe: Mapping[str, Any], requirements: Requirements, system: System, given: Mapping[str, Any]
) -> list[str]:
    """Notes on what differs from the recipe. Raises BadRequest for other weights that the user did not name."""
    notes = _other_weights(recipe, requirements, system, given) + _other_loras(requirements, system, given)
    now, then = {"kinema": __version__, **machine.versions()}, dict(recipe.get("versions") or {})
    then["kinema"] = recipe.get("kinema", __version__)
    notes += [_changed(name, now[name], was) for name, was in then.items() if now.get(name, was) != was]
    return notes + other_settings(recipe, system)


def _changed(name: str, now: str, recorded: Any) -> str:
    return f"{name} is {now} now and {printable(recorded, 60)} in the recipe"


def _other_weights(
    recipe: Mapping[str, Any], requirements: Requirements, system: System, given: Mapping[str, Any]
) -> list[str]:
    from kinema.recipes import base_of

    base, now = base_of(recipe), weights_of({"weights": system.weights.hash})
    hashes = {each.key: each.hash for each in requirements.added if each.hash}
    recorded = weights_of(base) | hashes
    named = {*(value.partition("=")[0] for value in given.get("add", ())), *([""] if "model" in given else [])}
    ships = {each.slot for each in system.weights.added if registry.recipe_name(each.source.path) in registry.ADD_ONS}
    ships |= {""} if requirements.model.source == "ships" else set()
    notes = []
    for slot, current in now.items():
        was = recorded.get(slot, current if slot in ships else "none")
        if was == current:
            continue
        what = f"add-on {printable(slot, 60)}" if slot else printable(str(base["model"]), 100)
        if slot not in named:
            if was == "none" and given.get("allow_download"):
                notes.append(f"the recipe has no hash of the weights of {what}, so they may not be those of the clip")
                continue
            option = f"--add {printable(slot, 60)}=PATH" if slot else "--model"
            raise BadRequest(
                f"the weights of {what} are not those the clip was generated with ({_both(current, was)}); "
                f"pass {option} to name the file, or to accept these"
            )
        notes.append(f"the weights of {what} are not those of the clip ({_both(current, was)})")
    return notes


def _other_stage_differences(
    recipe: Mapping[str, Any], inputs: ReplayInputs, model: Model, given: Mapping[str, Any]
) -> list[str]:
    """Notes on the models of other stages than the base. Raises BadRequest for other weights the user did not name."""
    from kinema.stages import image_model, super_resolution_model

    notes = []
    for stage, request in zip(recipe["stages"], inputs.requests, strict=True):
        if stage.get("stage") == "image" and len(inputs.requests) > 1:
            name, what, system = "image_model", "image", image_model(model.system, inputs.requests[1])
        elif request.super_resolution is not None:
            name, what = "super_resolution", "super-resolution"
            system = super_resolution_model(model.system, request.super_resolution)
        else:
            continue
        now, was = weights_of({"weights": system.weights.hash}), weights_of(stage)
        if now == was or not was:
            continue
        hashes = _both(now[""], was[""])
        if name not in given:
            raise BadRequest(
                f"the weights of the {what} model are not those the clip was generated with ({hashes}); pass "
                f"{flag(name)} to name the file, or to accept these"
            )
        notes.append(f"the weights of the {what} model are not those of the clip ({hashes})")
    return notes


def _other_loras(requirements: Requirements, system: System, given: Mapping[str, Any]) -> list[str]:
    """Notes on other LoRA files. Raises BadRequest for those that ``--lora`` does not name."""
    recorded = [each.hash for each in requirements.loras]
    now = [file.hash for file in system.loras.files]
    if now == recorded:
        return []
    if "lora" in given:
        return [f"the LoRAs are not those of the clip ({len(now)} now, {len(recorded)} in the recipe)"]
    wrong = next(file for file, was in zip(system.loras.files, recorded, strict=True) if file.hash != was)
    raise BadRequest(f"{registry.recipe_name(wrong.path)} is not the LoRA of the clip; pass --lora to accept another")


def other_settings(recipe: Mapping[str, Any], system: System) -> list[str]:
    """Notes on device, precision, compilation and threads that differ; each can change the last bits."""
    now = {"device": str(system.device), "dtype": str(system.policy.precision).removeprefix("torch.")}
    notes = [
        _changed(name, value, recipe[name])
        for name, value in now.items()
        if name in recipe and value.removesuffix(":0") != recipe[name].removesuffix(":0")
    ]
    if bool(recipe.get("compiled")) != system.compiled:
        notes.append(_changed("compilation", *("on", "off") if system.compiled else ("off", "on")))
    if (threads := recipe.get("threads") or 0) > MAX_THREADS * (os.cpu_count() or 1):
        notes.append(f"the clip was generated with {threads:,} threads, more than this machine can run")
    return notes


def _both(now: str, recorded: str) -> str:
    return f"{_brief(now)} now, {_brief(recorded)} in the recipe"


def _brief(weights_hash: str) -> str:
    """The first characters of a hash, without the name in front of it."""
    return printable(weights_hash.rpartition(":")[2], 12)
