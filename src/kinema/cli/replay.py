"""``kinema replay``: the clip again, from the recipe that its file carries."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema import __version__, registry
from kinema.bounds import printable
from kinema.cli import machine
from kinema.cli.options import Option, parse, with_defaults
from kinema.cli.output import Output
from kinema.cli.progress import JsonLines, display
from kinema.cli.requirements import ReplayInputs, Requirements, given, wants_of, weights_of
from kinema.cli.stopping import run_once
from kinema.cli.verbs import MODEL, REPORTING, WRITING, model_options, open_model, preview_file
from kinema.events import Note, Phase
from kinema.schema import BadRequest

if TYPE_CHECKING:
    from kinema.api import Model
    from kinema.system import System

ABOUT = (
    "Make a clip again from the recipe in its metadata, and say whether it is the same to the bit. A recipe opens only "
    "what ships, what is in the hub's cache with the hash that it tells, and what you give."
)
MOST_THREADS = 16
"""Threads a core that a recipe may ask for."""
CLIP = Option("clip", str, "", "clip written by kinema", positional=True, path=True)
GIVING = [
    Option(
        "input",
        list[str],
        [],
        "a picture or clip that the clip was made from, by the option that takes it (image=PATH) or its file's name; "
        "another file than it was is said; may be repeated",
        metavar="NAME=PATH",
        path=True,
    ),
    Option("super_resolution", str | None, None, "model of the second stage, where it is none that ships", path=True),
    Option("allow_download", bool, False, "ask the hub for models that the recipe names and the cache lacks"),
]


def replay(words: Sequence[str]) -> int:
    """Exit code 0 when a clip was made, whether or not it equals the first; the answer is said."""
    told = parse([CLIP, *GIVING, *MODEL, *WRITING, *REPORTING], words, "kinema replay", ABOUT)
    if not told.get("clip"):
        raise BadRequest("kinema replay needs a clip: kinema replay ball.mp4")
    if told.get("offline") and told.get("allow_download"):
        raise BadRequest("--offline and --allow-download do not go together: give one of them")
    own = with_defaults([*WRITING, *REPORTING], told)
    from kinema.media.metadata import read_recipe
    from kinema.recipes import checked, recorded, requests_of

    path = Path(told["clip"])
    recipe = checked(read_recipe(path), path)
    requests = requests_of(recipe, path)
    zoom = own["zoom"] if "zoom" in told else recipe.get("zoom", 1)
    output = Output(
        own["output"], f"{path.stem} replay", requests[0].clips, own["overwrite"], own["contact_sheet"], zoom
    )
    output.check()
    preview = preview_file(own["preview"], output)
    with display(quiet=own["quiet"], json_events=own["json_events"]) as show:
        wants = wants_of(recipe, requests)
        gives = given(wants, requests, {"variant": recipe["stages"][0].get("variant"), **told}, path)
        if any(want.source != "ships" for want in wants):
            show(Note(wants.told()))
        model = reopened(recipe, gives, told)
        changed = differences(recipe, wants, model.system, told) + _upper(recipe, gives, model, told)
        for note in (*gives.notes, *changed):
            show(Note(note))
        asked = recorded(recipe, gives.requests)
        clip = run_once(model, asked, gives.requests[0], output, own, show, preview)
        same, why = compared(recipe, clip.recipe)
        if why:
            show(Note(why))
        show(Phase("write"))
        paths = output.save(clip, show)
        if isinstance(show, JsonLines):
            show.write("saved", {"paths": [str(p) for p in paths], "same": same})
        else:
            sys.stdout.writelines(f"{p}\n" for p in paths)
    number = recipe.get("clip", 0) if isinstance(recipe.get("clip", 0), int) else 0
    other = paths[min(number, len(paths) - 1)]
    ending = about_partial(recipe["partial"], path) if "partial" in recipe else verdict(same, other, path)
    sys.stderr.write(f"kinema: {ending}\n")
    return 0


def compared(recipe: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[bool | None, str]:
    """Whether the frames are the same (None where nothing tells), and a known cause where they are not."""
    before, at_once = recipe.get("frames_hash"), _at_once(recipe)
    same = now.get("frames_hash") == before if before else None
    if same is not False or _at_once(now) == at_once:
        return same, ""
    then = "at the same time, in more memory," if at_once else "one after the other"
    return same, f"both halves of guidance ran {then} then, which can change the last bits"


def _at_once(recipe: Mapping[str, Any]) -> bool:
    """Whether branches of guidance were computed at the same time."""
    return bool(recipe["stages"][0].get("memory", {}).get("at_once", False))


def verdict(same: bool | None, made: Path, then: Path) -> str:
    """The last sentence of a replay: whether the frames of the two clips are the same, None where nothing tells."""
    one, other = printable(made.name, 100), printable(then.name, 100)
    if same is None:
        return f"{other} records no hash of its frames, so nothing tells whether those of {one} are identical to them"
    how = "are identical to" if same else "are not identical to"
    return f"the frames of {one} {how} those of {other}, bit for bit"


def about_partial(partial: Mapping[str, Any], then: Path) -> str:
    """The last sentence of a replay of a clip that was cancelled."""
    step = f"step {partial.get('step', 0):,} of {partial.get('steps', 0):,}"
    name = printable(then.name, 100)
    return (
        f"{name} is a partial clip, cancelled at {step}; this replay made the whole clip, which is not bit-equal to it"
    )


# ---------------------------------------------------------------------------------------- opening


def reopened(recipe: Mapping[str, Any], gives: ReplayInputs, told: Mapping[str, Any]) -> Model:
    """The model as it was, but for what the command line says; a device that is not here is refused."""
    given_by_name = {name: value for name, value in told.items() if name not in ("lora", "add")}
    offline = not told.get("allow_download")
    options = model_options({**as_it_was(recipe), **given_by_name, "model": gives.model, "offline": offline})
    if "device" not in told and options.device is not None:
        try:
            machine.device(options.device)
        except BadRequest as error:
            raise BadRequest(f"the clip was made on another machine: {error}; pass --device to choose one") from None
    overrides = _tuples(recipe["stages"][0].get("overrides") or {})
    return open_model(options, overrides=overrides, loras=gives.loras, add=gives.add)


def as_it_was(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The model options that were in force: device, precision; threads and compiled blocks where this machine can."""
    names = {long: short for short, long in machine.DTYPES.items()}
    told = {name: recipe.get(name) for name in ("device", "threads")}
    told["variant"] = recipe["stages"][0].get("variant")
    told["dtype"] = names[recipe.get("dtype", "float32")]
    if (told["threads"] or 0) > MOST_THREADS * (os.cpu_count() or 1):
        del told["threads"]
    told["compile"] = bool(recipe.get("compiled")) and machine.can_compile(told["device"])
    return {name: value for name, value in told.items() if value is not None}


def _tuples(value: Any) -> Any:
    """A config's values out of JSON, which knows no tuples."""
    if isinstance(value, Mapping):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# -------------------------------------------------------------------------------------- comparing


def differences(recipe: Mapping[str, Any], wants: Requirements, system: System, told: Mapping[str, Any]) -> list[str]:
    """What is not as it was when the clip was made; other weights are refused where the user did not name them."""
    notes = _other_weights(recipe, wants, system, told) + _other_loras(wants, system, told)
    now, then = {"kinema": __version__, **machine.versions()}, dict(recipe.get("versions") or {})
    then["kinema"] = recipe.get("kinema", __version__)
    notes += [
        f"{name} is {now[name]} now and was {printable(was, 60)} then"
        for name, was in then.items()
        if now.get(name, was) != was
    ]
    return notes + other_settings(recipe, system)


def _other_weights(
    recipe: Mapping[str, Any], wants: Requirements, system: System, told: Mapping[str, Any]
) -> list[str]:
    now = weights_of({"weights": system.weights.hash})
    before = weights_of(recipe["stages"][0]) | {want.key: want.hash for want in wants.added if want.hash}
    named = {*(word.partition("=")[0] for word in told.get("add", ())), *([""] if "model" in told else [])}
    ships = {each.slot for each in system.weights.added if registry.called(each.source.path) in registry.PARTS}
    ships |= {""} if wants.model.source == "ships" else set()
    notes = []
    for slot, is_now in now.items():
        was = before.get(slot, is_now if slot in ships else "none")
        if was == is_now:
            continue
        hashes = f"{_brief(is_now)} now, {_brief(was)} then"
        if slot not in named:
            of = (
                f"of {printable(str(recipe['stages'][0]['model']), 100)}"
                if not slot
                else f"added as {printable(slot, 60)}"
            )
            option = f"--add {printable(slot, 60)}=PATH" if slot else "--model"
            if was == "none" and told.get("allow_download"):
                notes.append(f"nothing tells whether the weights {of} are those of the clip: they have no hash")
                continue
            raise BadRequest(
                f"the weights {of} are not those the clip was made with ({hashes}); "
                f"pass {option} to name the file, or to accept these"
            )
        notes.append(f"other weights than the clip's{f' in {slot}' if slot else ''} ({hashes})")
    return notes


def _upper(recipe: Mapping[str, Any], gives: ReplayInputs, model: Model, told: Mapping[str, Any]) -> list[str]:
    """What is not as it was of the second stage's model; other weights are refused where the user did not name it."""
    if len(gives.requests) < 2:
        return []
    from kinema.stages import beside

    now = weights_of({"weights": beside(model.system, str(gives.requests[1].super_resolution)).weights.hash})
    was = weights_of(recipe["stages"][1])
    if now == was or not was:
        return []
    hashes = f"{_brief(now[''])} now, {_brief(was[''])} then"
    if "super_resolution" not in told:
        raise BadRequest(
            f"the weights of the second stage are not those the clip was made with ({hashes}); pass --super-resolution "
            "to name the file, or to accept these"
        )
    return [f"other weights than the clip's in the second stage ({hashes})"]


def _other_loras(wants: Requirements, system: System, told: Mapping[str, Any]) -> list[str]:
    """Whether LoRA files are others than they were, which is refused of those that `--lora` does not name."""
    then = [want.hash for want in wants.loras]
    now = [file.hash for file in system.loras.files]
    if now == then:
        return []
    if "lora" in told:
        return [f"other LoRAs than the clip's ({len(now)} now, {len(then)} then)"]
    wrong = next(file for file, was in zip(system.loras.files, then, strict=True) if file.hash != was)
    raise BadRequest(f"{registry.called(wrong.path)} is not the LoRA of the clip; pass --lora to accept another")


def other_settings(recipe: Mapping[str, Any], system: System) -> list[str]:
    """What is other of how the model ran: any of it can change the last bits."""
    now = {"device": str(system.device), "dtype": str(system.policy.precision).removeprefix("torch.")}
    notes = [
        f"{name} is {value} now and was {printable(recipe[name], 60)} then"
        for name, value in now.items()
        if name in recipe and value.removesuffix(":0") != recipe[name].removesuffix(":0")
    ]
    if bool(recipe.get("compiled")) != system.compiled:
        now_and_then = ("are not now and were then", "are now and were not then")[system.compiled]
        notes.append(f"the network's blocks {now_and_then} compiled")
    if (threads := recipe.get("threads") or 0) > MOST_THREADS * (os.cpu_count() or 1):
        notes.append(f"the clip was made with {threads:,} threads, which are more than this machine can run")
    return notes


def _brief(weights_hash: str) -> str:
    """Enough of a hash to tell two apart by eye, without the name of what was hashed."""
    return printable(weights_hash.rpartition(":")[2], 12)
